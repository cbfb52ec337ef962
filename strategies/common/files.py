"""Files that appear whole or not at all, and sealed files, which tell when they are damaged.

A sealed file carries the SHA-256 of its content in its name, ``STEM.<digest>.SUFFIX``, so that
content and checksum come into being in one rename.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from strategies.common.errors import RunError
from strategies.common.fault_points import reach

DIGEST_CHARS = 32
"""Hex digits of the SHA-256 in a sealed file's name: 128 bits."""

CHUNK_BYTES = 2**20
"""What is copied at a time where the kernel does not copy."""


class StorageError(RunError):
    """A file could not be written: the disk is full, read-only, or not ours."""


class DamagedError(RunError):
    """A file is not what was once written under its name."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, force it to disk, and rename it into place.

    Raises
    ------
    StorageError
        If that fails; what stood under the name before is untouched, and no temporary file
        is left.
    """
    _write(path, lambda file: file.write(content))


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            reach("file-written", path=str(path))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file, as `write_atomically` writes one, without reading it into memory.

    The kernel copies, and a file system that can (Btrfs, XFS) lets both files share their blocks
    until one is changed.

    Raises
    ------
    StorageError
        If the copy cannot be written.
    DamagedError
        If the source cannot be read.
    """
    try:
        reading = source.open("rb")
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror}", where=str(source)) from None
    with reading:
        _write(target, lambda writing: _copy(reading, writing))


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    left = os.fstat(source.fileno()).st_size
    try:
        while left and (count := os.copy_file_range(source.fileno(), target.fileno(), left)):
            left -= count
    except (OSError, AttributeError):
        pass  # not every file system, nor macOS, knows this call; a full disk is full below, too
    if left:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def append_line(path: Path, fields: Mapping[str, Any]) -> None:
    """Append one JSON line and force it to disk; what JSON cannot hold becomes null.

    Raises
    ------
    StorageError
        If that fails; the file is as it was, as far as the disk allows.
    """
    line = json.dumps(finite(fields), allow_nan=False)
    size = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size)
        raise cannot_write(path, error) from None


def cut(path: Path, size: int) -> None:
    """Cut a file to its first ``size`` bytes, and force that to disk."""
    try:
        with path.open("ab") as file:
            file.truncate(size)
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None


def cut_torn_line(path: Path) -> None:
    """Remove what follows the last line end: a line that was being written when all stopped."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            cut(path, whole)


def seal(folder: Path, stem: str, suffix: str, content: bytes) -> Path:
    """Write a sealed file and return its path.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_CHARS]
    path = folder / f"{stem}.{digest}{suffix}"
    write_atomically(path, content)
    return path


def check_seal(path: Path) -> None:
    """Check that a sealed file is what was written under its name.

    Raises
    ------
    DamagedError
        If it is missing, truncated or changed.
    """
    expected = path.name.split(".")[-2]
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_CHARS]
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if actual != expected:
        raise DamagedError(
            "the file is damaged: its content does not have the checksum in its name",
            where=str(path),
            got=f"{actual}, {path.stat().st_size} bytes",
            expected=expected,
        )


def sealed_files(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the sealed files of a folder in the order of their names; temporary ones are not."""
    for path in sorted(folder.glob(f"*{suffix}")):
        if not path.name.startswith("."):
            yield path


def remove_temporary(folder: Path) -> None:
    """Remove what writers that died left under temporary names."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into a `StorageError` about a path."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> StorageError:
    """Return the error for a path that could not be written."""
    return StorageError(
        f"cannot be written: {error.strerror or error}",
        where=str(path),
        hint="The last checkpoint is intact. Make room or make it writable, then resume the run",
    )


def finite(value: Any) -> Any:
    """Return the value with what JSON cannot hold (NaN and infinities) made null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
