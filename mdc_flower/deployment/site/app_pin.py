"""Check, file by file, that an app bundle is the app that is installed at this site.

A coordinator's app is code that runs at the sites on the sites' data. It decides what leaves a
site. Therefore a site runs only the code that is installed there.

Flower unpacks a bundle and puts it first on Python's path. So an additional file is as dangerous as
a changed one: a compiled module takes precedence over the source beside it, and a top-level module
over an installed one.
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
"""Flower's own list of a bundle's files; Flower removes it when it unpacks the bundle."""

MAX_PROJECT_BYTES = 1_000_000
MAX_SHOWN = 120
"""Maximum number of characters to show of a text that comes from the coordinator."""


def difference(bundle: bytes) -> str | None:
    """Return how a Flower app bundle differs from the installed app; None if it does not.

    Parameters
    ----------
    bundle
        The bundle (FAB), a zip archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            return _difference(archive)
    except Exception as error:  # a malicious archive can make Python's reader raise any error
        return f"it cannot be read: {_printable(error)}"


def _difference(archive: zipfile.ZipFile) -> str | None:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if entries[PROJECT].file_size > MAX_PROJECT_BYTES:
        return f"its {PROJECT} has {entries[PROJECT].file_size} bytes"
    project = tomllib.loads(archive.read(PROJECT).decode())
    if version := _other_version(project):
        return version
    own = _installed()

    def is_own(name: str) -> bool:
        # Compare the size first, so that only files of the right size are unpacked.
        entry = entries.get(name)
        is_size = entry is not None and entry.file_size == len(own[name])
        return is_size and archive.read(name) == own[name]

    surplus = entries.keys() - own.keys() - {PROJECT, MANIFEST}
    other = sorted(surplus | {name for name in own if not is_own(name)})
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        return (
            f"its code differs from the installed mdc-flower {__version__}: "
            f"{_printable(other[0])}{more}"
        )
    counts = Counter(entry.filename for entry in archive.infolist())
    if twice := [name for name, count in counts.items() if count > 1]:
        return f"it contains {_printable(twice[0])} more than once"
    mine = tomllib.loads(side_file(PROJECT).read_text("utf-8"))
    if project != mine:
        key = _printable(_differing_key(project, mine))
        return f"its {PROJECT} differs from the installed one: {key}"
    return None


def is_own_name(fab_id: str, fab_version: str) -> bool:
    """Return whether a run gives its app the id and version of the installed app.

    Flower derives the folder that it loads an app from out of this id and version.
    """
    project = tomllib.loads(side_file(PROJECT).read_text("utf-8"))
    publisher, name = project["tool"]["flwr"]["app"]["publisher"], project["project"]["name"]
    return (fab_id, fab_version) == (f"{publisher}/{name}", __version__)


def _other_version(project: Mapping[str, Any]) -> str | None:
    table = project.get("project", {})
    name, version = table.get("name"), table.get("version")
    if (name, version) == ("mdc-flower", __version__):
        return None
    got = f"{_printable(name)} {_printable(version)}"
    return f"it is {got}, but mdc-flower {__version__} is installed"


def _differing_key(got: Any, expected: Any) -> str:
    """Return the first key in which two tables differ, as a dotted path."""
    for key in sorted(got.keys() | expected.keys()):
        one, other = got.get(key), expected.get(key)
        if one != other:
            both = isinstance(one, Mapping) and isinstance(other, Mapping)
            return f"{key}.{_differing_key(one, other)}" if both else str(key)
    return ""


def _printable(value: object) -> str:
    """Return text from the coordinator as one short line without control characters."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _installed() -> dict[str, bytes]:
    """Return the installed app's files by their names in a bundle, except `PROJECT`."""
    files = {LICENSE: side_file(LICENSE).read_bytes()}
    for package in PACKAGES:
        root = Path(package.__path__[0])
        for path in root.rglob("*.py"):
            files[f"{root.name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return files
