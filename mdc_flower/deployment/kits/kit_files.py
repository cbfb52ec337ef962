"""The contents of a kit: ``kit.toml``, and files for its operator, created from templates."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template

import tomli_w

import mdc_flower
from mdc_flower.data.registry import data_folder
from mdc_flower.deployment.kits.kits import (
    CA,
    KIT,
    SITE_KEY,
    SITE_PUBLIC_KEY,
    CoordinatorKit,
    Kit,
    SiteKit,
    join_address,
)
from mdc_flower.deployment.kits.spec import FederationSpec, SiteSpec

HEAD = "# Written by `mdc provision` from federation.toml; changes in this file will be lost.\n\n"
SOME_DATA = "image-folder:/path/to/images"
"""Placeholder for the data set that the site's operator must name."""


def coordinator_files(spec: FederationSpec, ca: bytes) -> dict[str, bytes]:
    """Return the files of the coordinator's kit by name, without key, certificate and sites.

    Parameters
    ----------
    spec
        The federation.
    ca
        The authority's certificate, PEM.
    """
    settings = {
        "kind": "coordinator",
        **_common(spec),
        "listen": spec.listen,
        "data": spec.coordinator.data,
        "data-root": spec.coordinator.data_root,
        "max-site-weight": spec.max_site_weight,
        "examples": {
            site.name: (site.min_examples, site.max_examples)
            for site in spec.site
            if site.min_examples > 1 or site.max_examples
        },
    }
    kit = CoordinatorKit.read(settings, "the coordinator's kit")
    mount = _mount(spec.coordinator.data, spec.coordinator.data_root)
    values = {"name": "coordinator", "names": ", ".join(spec.certificate_names), "mount": mount}
    return {**_for_people("coordinator", spec, values), CA: ca, KIT: _toml(kit)}


def site_files(
    spec: FederationSpec, site: SiteSpec, ca: bytes, key: bytes, public_key: str
) -> dict[str, bytes]:
    """Return all files of a site's kit by name.

    Parameters
    ----------
    spec
        The federation.
    site
        The site, one of ``spec.site``.
    ca
        The authority's certificate, PEM.
    key, public_key
        The site's key pair, in OpenSSH's format.
    """
    own = site.model_dump(mode="json", by_alias=True, exclude={"name"})
    settings = {"kind": "site", **_common(spec), "site": site.name, **own}
    if spec.job:
        settings |= _own_job(spec.job, site)
    kit = SiteKit.read(settings, f"the kit of {site.name}")
    data_option = [] if site.data or site.command else ["--data", SOME_DATA]
    values = {
        "name": site.name,
        "mount": _mount(site.data, site.data_root),
        "data": _data(site),
        "data_option": "".join(f" {part}" for part in data_option),
        "command": ", ".join(map(json.dumps, ["site", "start", "/kit", *data_option])),
        "min_examples": str(site.min_examples),
        "max_examples": f", and at most {site.max_examples}" if site.max_examples else "",
        "metrics": "\n".join(f"  - `{metric}`" for metric in kit.metrics)
        or f"  - every metric that the job `{spec.job}` lets leave a site",
    }
    return {
        **_for_people("site", spec, values),
        CA: ca,
        SITE_KEY: key,
        SITE_PUBLIC_KEY: public_key.encode("ascii"),
        KIT: _toml(kit),
    }


def _own_job(job: str, site: SiteSpec) -> dict[str, object]:
    """Return a site's settings for a job of the federation's own: its module is allowed."""
    module = job.partition(":")[0]
    # The job itself says what leaves a site, unless the site names less.
    metrics = site.metrics if "metrics" in site.model_fields_set else ()
    return {"modules": list(dict.fromkeys((*site.modules, module))), "metrics": list(metrics)}


def _common(spec: FederationSpec) -> dict[str, object]:
    return {
        "federation": spec.name,
        "host": spec.host,
        "port": spec.port,
        "version": mdc_flower.__version__,
        **({"contract": spec.contract} if spec.contract else _of_job(spec)),
    }


def _of_job(spec: FederationSpec) -> dict[str, str]:
    part = {"exchange": spec.exchange, "base": spec.base} if spec.exchange != "all" else {}
    return {"job": spec.job, **part, **({"keep": spec.keep} if spec.keep else {})}


def _for_people(kind: str, spec: FederationSpec, own: Mapping[str, str]) -> dict[str, bytes]:
    shared = {key.replace("-", "_"): str(value) for key, value in _common(spec).items()}
    values = {
        **shared,
        "address": join_address(spec.host, spec.port),
        "agreed": _agreed(spec),
        **own,
    }
    folder = files("mdc_flower.deployment.kits") / "templates" / kind
    return {
        template.name: Template(template.read_text("utf-8")).substitute(values).encode()
        for template in sorted(folder.iterdir(), key=lambda entry: entry.name)
    }


def _agreed(spec: FederationSpec) -> str:
    """Return what the data must be, in words."""
    if spec.contract is None:
        return f"Data for the job `{spec.job}`, and its module installed."
    contract = spec.contract
    shape = " x ".join(map(str, contract.shape))
    return (
        f"Data that match the contract `{contract.name}`: examples of type `{contract.type}` and "
        f"shape {shape};\n  the classes, in this order: {_classes(contract.classes)}."
    )


def _data(site: SiteSpec) -> str:
    """Return where a site's data come from."""
    if site.command:
        return f"what your own command reads, which trains here: `{site.command}`, from `kit.toml`"
    return f"`{site.data}`, from `kit.toml`" if site.data else "given with `--data`"


def _classes(classes: Sequence[str]) -> str:
    return (
        ", ".join(classes)
        if len(classes) <= 20
        else f"the {len(classes)} classes listed in `kit.toml`"
    )


def _mount(data: str, data_root: str) -> str:
    """Return the data's volume for ``compose.yaml``, or a comment if the path is not known."""
    path = data_folder(data, data_root) or data_root
    if not path.startswith("/"):
        return "      # Add the data's folder, if any: - /path/to/data:/path/to/data:ro\n"
    quoted = json.dumps(path).replace("$", "$$")  # compose would read $ as a variable
    return (
        "      - type: bind\n"
        f"        source: {quoted}\n"
        f"        target: {quoted}\n"
        "        read_only: true\n"
    )


def _toml(kit: Kit) -> bytes:
    settings = kit.model_dump(mode="json", by_alias=True, exclude_none=True)
    # The main keys come first. Tables come last, because no top-level key can follow a table.
    tables = ["launch", "examples", "contract"]
    order = ["kind", "federation", "site", *sorted(settings.keys() - set(tables)), *tables]
    ordered = {key: settings[key] for key in order if key in settings}
    return (HEAD + tomli_w.dumps(ordered)).encode()
