"""Whether an app bundle is the app that is installed here, file by file.

A coordinator's app is code that runs at the sites, with the sites' data. What a site lets leave is
up to that code; so a site runs the code it has installed, and no other.
"""

import io
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mdc_flower
import strategies
from mdc_flower import __version__

PACKAGES = (mdc_flower, strategies)
COMPONENTS = {
    "serverapp": "mdc_flower.server_app:app",
    "clientapp": "mdc_flower.client_app:app",
}


def difference(bundle: bytes) -> str | None:
    """Return how a Flower app bundle differs from the app installed here; None if it does not.

    Parameters
    ----------
    bundle
        The bundle (FAB), a zip archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            sent = {name: archive.read(name) for name in archive.namelist()}
        project = tomllib.loads(sent["pyproject.toml"].decode())
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        return f"it cannot be read: {error}"
    if version := _other_version(project):
        return version
    code = {name: content for name, content in sent.items() if name.endswith(".py")}
    own = _installed()
    names = sorted(set(code) | set(own))
    other = [name for name in names if code.get(name) != own.get(name)]
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        return f"its code is not that of mdc-flower {__version__} as installed: {other[0]}{more}"
    if (components := _app(project).get("components")) != COMPONENTS:
        return f"it would start {components}"
    return None


def _other_version(project: Mapping[str, Any]) -> str | None:
    told = project.get("project", {})
    name, version = told.get("name"), told.get("version")
    if (name, version) == ("mdc-flower", __version__):
        return None
    return f"it is {name} {version}, installed is mdc-flower {__version__}"


def _app(project: Mapping[str, Any]) -> dict[str, Any]:
    return dict(project.get("tool", {}).get("flwr", {}).get("app", {}))


def _installed() -> dict[str, bytes]:
    """Return the installed packages' source files as they stand in a bundle."""
    files = {}
    for package in PACKAGES:
        root = Path(package.__path__[0])
        for path in root.rglob("*.py"):
            files[f"{root.name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return files
