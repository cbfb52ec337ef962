"""Write and pack the files of kits.

Private files have restricted permissions from the first byte. Folders appear completely or not at
all. A kit's zip archive depends only on the kit.
"""

import hashlib
import io
import os
import shutil
import stat
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from mdc_flower.deployment.kits.kits import PRIVATE_FILES, REVOKED, SITES
from mdc_flower.deployment.kits.spec import COORDINATOR
from strategies.common.errors import ConfigError
from strategies.common.files import StorageError, sync_folder

PRIVATE, PUBLIC, PRIVATE_FOLDER = 0o600, 0o644, 0o700
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Time of all archive entries, so that the same kit gives the same bytes."""


def mode_of(name: str) -> int:
    """Return the permissions of a kit's file, given its name."""
    return PRIVATE if Path(name).name in PRIVATE_FILES else PUBLIC


def make_folder(path: Path) -> None:
    """Create a folder for its owner only, if it does not exist.

    Raises
    ------
    StorageError
        If that fails.
    """
    try:
        path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot("created", path, error) from None


def read_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}", where=str(path)) from None


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file under a temporary name, with its mode from the start, then rename it.

    Raises
    ------
    StorageError
        If that fails; an existing file stays unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot("written", path, error) from None


def differs(path: Path, content: bytes, mode: int) -> bool:
    """Return whether a file is missing, has other content, or has too wide permissions."""
    if not path.is_file():
        return True
    is_open = mode == PRIVATE and path.stat().st_mode & 0o077 != 0
    return is_open or path.read_bytes() != content


def write_folder(folder: Path, files: Mapping[str, bytes], subfolders: Iterable[str]) -> None:
    """Write a new folder under a temporary name, then rename it.

    Raises
    ------
    StorageError
        If that fails; then the folder does not exist.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    remove_folder(temporary)
    for path in (temporary, *(temporary / name for name in subfolders)):
        make_folder(path)
    for name, content in files.items():
        write_file(temporary / name, content, mode_of(name))
    try:
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise _cannot("written", folder, error) from None


def remove_folder(folder: Path) -> None:
    """Remove a folder; under its own name it disappears completely or not at all.

    Raises
    ------
    StorageError
        If that fails.
    """
    if not folder.exists():
        return
    try:
        gone = folder
        if not folder.name.startswith("."):
            gone = folder.rename(folder.with_name(f".{folder.name}.removed.tmp"))
        shutil.rmtree(gone)
    except OSError as error:
        raise _cannot("removed", folder, error) from None


def remove_file(path: Path) -> None:
    """Remove a file if it exists.

    Raises
    ------
    StorageError
        If that fails.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot("removed", path, error) from None


def remove_leftovers(output: Path) -> None:
    """Remove the temporary files and folders of an interrupted provisioning.

    The ``state`` folders of the kits are left alone.

    Raises
    ------
    StorageError
        If that fails.
    """
    public_keys = (f"{COORDINATOR}/{folder}/.*.tmp" for folder in (SITES, REVOKED))
    for pattern in (".*.tmp", "*/.*.tmp", *public_keys):
        for path in sorted(output.glob(pattern)):
            if path.is_dir():
                remove_folder(path)
            else:
                remove_file(path)


def pack(name: str, files: Mapping[str, bytes], subfolders: Iterable[str]) -> bytes:
    """Return a kit as a zip archive: the same bytes for the same kit on every machine.

    All entries are under ``NAME/`` and carry their permissions, so that ``unzip`` restores a
    private key as private.
    """
    buffer = io.BytesIO()
    # Do not compress: another version of zlib would give other bytes.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for folder in ("", *sorted(f"{subfolder}/" for subfolder in subfolders)):
            archive.writestr(_entry(f"{name}/{folder}", stat.S_IFDIR | PRIVATE_FOLDER), b"")
        for path, content in sorted(files.items()):
            archive.writestr(_entry(f"{name}/{path}", stat.S_IFREG | mode_of(path)), content)
    return buffer.getvalue()


def checksum_line(name: str, content: bytes) -> bytes:
    """Return a checksum line for ``sha256sum -c``."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def _entry(path: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path, ZIP_TIME)
    entry.create_system = 3  # Unix: the permissions are in the upper half of external_attr
    entry.external_attr = mode << 16 | (0x10 if stat.S_ISDIR(mode) else 0)
    return entry


def _cannot(verb: str, path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot be {verb}: {error.strerror or error}",
        where=str(path),
        hint="Free some space or make it writable, then repeat the command: it continues from here",
    )
