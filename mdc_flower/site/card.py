"""The card with which a site introduces itself: its reply to a hello."""

import importlib.util
from hashlib import sha256
from pathlib import Path

from mdc_flower import __version__
from mdc_flower.config import CLASSIFICATION_JOB, RunConfig, SiteConfig
from mdc_flower.data import registry as data
from mdc_flower.jobs.run_task import load_site_run_task
from mdc_flower.jobs.task import agreed_form
from mdc_flower.models import build as models
from mdc_flower.site.group import current
from mdc_flower.site.leading import threads_here
from mdc_flower.training.numerics import (
    device_name,
    number_format,
    pick_autocast_dtype,
    pick_device,
)
from strategies.common.errors import MdcError
from strategies.exchange.messages import SiteCard


def site_card(config: RunConfig, site: SiteConfig) -> SiteCard:
    """Return a site's card for a run.

    A simulated site loads its data for it, and a real one without a contract.

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
    form, contents = _about_data(config, site)
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
        data_form=form,
        data_sha256=contents,
    )


def _about_data(config: RunConfig, site: SiteConfig) -> tuple[str, str]:
    """Return form and digest of the data of a classification, as far as the site tells them.

    What is wrong with them is reported in the reply to the first train message.
    """
    if (site.job or config.job) != CLASSIFICATION_JOB:
        return "", ""
    try:
        if form := "" if site.is_simulated else agreed_form(config, site):
            return form, ""
        task = load_site_run_task(config, site.shared_config())
        return ("", task.data_sha256) if site.is_simulated else (task.data_form, "")
    except MdcError:
        return "", ""


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
