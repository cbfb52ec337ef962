"""The card with which a site introduces itself: its reply to a hello."""

import importlib.util
from hashlib import sha256
from pathlib import Path

from mdc_flower import __version__
from mdc_flower.config import CLASSIFICATION_JOB, RunConfig, SiteConfig
from mdc_flower.data import registry as data
from mdc_flower.models import build as models
from mdc_flower.site.group import current
from mdc_flower.site.leading import threads_here
from mdc_flower.training.numerics import (
    device_name,
    number_format,
    pick_autocast_dtype,
    pick_device,
)
from strategies.exchange.messages import SiteCard


def site_card(config: RunConfig, site: SiteConfig) -> SiteCard:
    """Return a site's card for a run, without loading data or running the user's modules.

    Raises
    ------
    ConfigError
        If the site's device does not exist.
    """
    device, group = pick_device(site.device or config.device), current()
    # The site refuses a module that it does not allow when the run imports it.
    code = {
        key: code_digest(module)
        for key, module in user_modules(config, site).items()
        if site.allows(module)
    }
    return SiteCard(
        site.name,
        site.num_partitions,
        __version__,
        site.is_simulated,
        device=device_name(device),
        number_format=number_format(pick_autocast_dtype(config.precision, device)),
        threads=threads_here(config, site),
        ranks=group.ranks.size if group else 1,
        sharded=group is not None and group.ranks.shard,
        model_code=code.get("model", ""),
        dataset_code=code.get("dataset", ""),
        # A site's own job need not equal the run's.
        job_code=code.get("job", "") if site.job in ("", config.job) else "",
        num_examples=site.num_examples,
        keeps_state=site.is_simulated or bool(site.state),
    )


def user_modules(config: RunConfig, site: SiteConfig | None = None) -> dict[str, str]:
    """Return the modules that a run names as ``module:function``, by config key.

    A site that has its own data set does not use the run's.
    """
    job = config.job if site is None or not site.job else site.job
    if job != CLASSIFICATION_JOB:
        return {"job": job.partition(":")[0]}
    named = {"model": models.user_module(config.model)}
    if site is None or not site.data:
        named["dataset"] = data.user_module(config.dataset)
    return {key: module for key, module in named.items() if module}


def code_digests(config: RunConfig) -> dict[str, str]:
    """Return the digest of each module that a run names, by config key."""
    return {key: code_digest(module) for key, module in user_modules(config).items()}


def code_digest(module: str) -> str:
    """Return the SHA-256, in hex, of a module's source; empty if there is no source here.

    For a package, it covers every ``.py`` file. For a module, it covers the module's file, but
    nothing that the module imports. Line endings do not matter.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # no such parent, or not a module name
        return ""
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return ""
    origin = Path(spec.origin)
    folder = origin.parent
    files = sorted(folder.rglob("*.py")) if spec.submodule_search_locations else [origin]
    digest = sha256()
    for file in files:
        source = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{file.relative_to(folder).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()
