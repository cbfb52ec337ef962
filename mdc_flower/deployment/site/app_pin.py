"""Whether an app bundle is the app that is installed here, file by file.

A coordinator's app is code that runs at the sites, with the sites' data. What a site lets leave is
up to that code; so a site runs the code it has installed, and no other.

A bundle is unpacked and put first on Python's path, so a file too many is as bad as another one: a
compiled module goes before the source beside it, and a top-level one before what is installed.
"""

import io
import tomllib
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdc_flower import __version__
from mdc_flower.engines.app_bundle import PACKAGES, side_file

PROJECT, LICENSE = "pyproject.toml", "LICENSE"
MANIFEST = ".info/CONTENT"
"""Flower's own list of a bundle's files, which it removes when it unpacks the bundle."""

MAX_PROJECT_BYTES = 1_000_000
MAX_TOLD = 120
"""Characters that are told of what a coordinator has written."""


def difference(bundle: bytes) -> str | None:
    """Return how a Flower app bundle differs from the app installed here; None if it does not.

    Parameters
    ----------
    bundle
        The bundle (FAB), a zip archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            return _difference(archive)
    except Exception as error:  # whatever an archive made for it lets Python's reader raise
        return f"it cannot be read: {_told(error)}"


def _difference(archive: zipfile.ZipFile) -> str | None:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if entries[PROJECT].file_size > MAX_PROJECT_BYTES:
        return f"its {PROJECT} has {entries[PROJECT].file_size} bytes"
    project = tomllib.loads(archive.read(PROJECT).decode())
    if version := _other_version(project):
        return version
    own = _installed()

    def is_own(name: str) -> bool:
        # The size comes first, so that nothing is unpacked that cannot be it.
        entry = entries.get(name)
        is_size = entry is not None and entry.file_size == len(own[name])
        return is_size and archive.read(name) == own[name]

    surplus = entries.keys() - own.keys() - {PROJECT, MANIFEST}
    other = sorted(surplus | {name for name in own if not is_own(name)})
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        return (
            f"its code is not that of mdc-flower {__version__} as installed: "
            f"{_told(other[0])}{more}"
        )
    counts = Counter(entry.filename for entry in archive.infolist())
    if twice := [name for name, count in counts.items() if count > 1]:
        return f"it holds {_told(twice[0])} more than once"
    mine = tomllib.loads(side_file(PROJECT).read_text("utf-8"))
    if project != mine:
        return f"its {PROJECT} is not the installed one: {_told(_differing_key(project, mine))}"
    return None


def is_own_name(fab_id: str, fab_version: str) -> bool:
    """Return whether a run names its app as the installed app is named.

    Flower makes the folder that it loads an app from out of what the run says of it.
    """
    project = tomllib.loads(side_file(PROJECT).read_text("utf-8"))
    publisher, name = project["tool"]["flwr"]["app"]["publisher"], project["project"]["name"]
    return (fab_id, fab_version) == (f"{publisher}/{name}", __version__)


def _other_version(project: Mapping[str, Any]) -> str | None:
    told = project.get("project", {})
    name, version = told.get("name"), told.get("version")
    if (name, version) == ("mdc-flower", __version__):
        return None
    return f"it is {_told(name)} {_told(version)}, installed is mdc-flower {__version__}"


def _differing_key(got: Any, expected: Any) -> str:
    """Return the first key in which two tables differ, with dots."""
    for key in sorted(got.keys() | expected.keys()):
        one, other = got.get(key), expected.get(key)
        if one != other:
            both = isinstance(one, Mapping) and isinstance(other, Mapping)
            return f"{key}.{_differing_key(one, other)}" if both else str(key)
    return ""


def _told(value: object) -> str:
    """Return what a coordinator has written as one short line without control characters."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= MAX_TOLD else f"{text[:MAX_TOLD]}..."


def _installed() -> dict[str, bytes]:
    """Return the installed app's files as they stand in a bundle, but for `PROJECT`."""
    files = {LICENSE: side_file(LICENSE).read_bytes()}
    for package in PACKAGES:
        root = Path(package.__path__[0])
        for path in root.rglob("*.py"):
            files[f"{root.name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return files
