"""Atomic file writes, and sealed files, whose damage is detected.

A sealed file has the SHA-256 of its content in its name, ``STEM.<digest>.SUFFIX``. So one rename
creates content and checksum together.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from strategies.common.errors import RunError
from strategies.common.fault_points import reach

DIGEST_CHARS = 32
"""Hex digits of the SHA-256 in a sealed file's name: 128 bits."""

CHUNK_BYTES = 2**20
"""Bytes copied at a time if the kernel does not copy the file, and hashed at a time."""

Stamp = tuple[int, int, int, int]
"""What `stamp` returns: inode, size, and the times of the last change in nanoseconds."""

Content = bytes | Iterable[bytes | memoryview]
"""The content of a file, whole or in parts: one-dimensional, of single bytes."""


class StorageError(RunError):
    """A file could not be written: the disk is full or read-only, or permission is denied."""


class DamagedError(RunError):
    """A file is missing, unreadable, or differs from what was written."""


def write_atomically(path: Path, content: Content) -> None:
    """Write a file under a temporary name, force it to disk, and rename it into place.

    Parameters
    ----------
    path
        Path of the file.
    content
        The content, whole or in parts; only one part needs to be in memory.

    Raises
    ------
    StorageError
        If that fails. An existing file of that name is unchanged, and no temporary file is left.
    """
    _write(path, lambda file: file.writelines(_parts(content)))


def _parts(content: Content) -> Iterable[bytes | memoryview]:
    return [content] if isinstance(content, bytes) else content


def _write(
    path: Path, fill: Callable[[BinaryIO], object], named: Callable[[], Path] | None = None
) -> Path:
    """Write a file; ``named`` returns its path if that is only known once it is written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            path = named() if named else path
            reach("file-written", path=str(path))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file atomically, like `write_atomically`, without reading it into memory.

    The kernel copies the file. Some file systems (Btrfs, XFS) let both files share their blocks
    until one of them changes.

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
        pass  # not supported by every file system or by macOS; real errors recur below
    if left:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def append_line(path: Path, fields: Mapping[str, Any]) -> None:
    """Append one JSON line and force it to disk; NaN and infinities become null.

    Raises
    ------
    StorageError
        If that fails. The file is restored to its old length if the disk allows it.
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
    """Cut a file to its first ``size`` bytes and force the change to disk."""
    try:
        with path.open("ab") as file:
            file.truncate(size)
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None


def cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line, left by a process that died while writing it."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            cut(path, whole)


def seal(folder: Path, stem: str, suffix: str, content: Content) -> Path:
    """Write a sealed file and return its path; the checksum is computed while writing.

    Parameters
    ----------
    folder, stem, suffix
        Folder of the file, and first and last part of its name.
    content
        As for `write_atomically`.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    digest = hashlib.sha256()

    def fill(file: BinaryIO) -> None:
        for part in _parts(content):
            whole = memoryview(part)
            for start in range(0, len(whole), CHUNK_BYTES):
                chunk = whole[start : start + CHUNK_BYTES]
                digest.update(chunk)
                file.write(chunk)

    def named() -> Path:
        return folder / f"{stem}.{digest.hexdigest()[:DIGEST_CHARS]}{suffix}"

    return _write(folder / f"{stem}{suffix}", fill, named)


def check_seal(path: Path) -> None:
    """Check that the content of a sealed file matches the checksum in its name.

    Raises
    ------
    DamagedError
        If the file is missing, truncated or changed.
    """
    expected = path.name.split(".")[-2]
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_CHARS]
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if actual != expected:
        raise DamagedError(
            "the file is damaged: its content does not match the checksum in its name",
            where=str(path),
            got=f"{actual}, {path.stat().st_size} bytes",
            expected=expected,
        )


def stamp(path: Path) -> Stamp | None:
    """Return what changes whenever a file is written or replaced; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def sealed_files(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the sealed files of a folder, sorted by name; temporary files are skipped."""
    for path in sorted(folder.glob(f"*{suffix}")):
        if not path.name.startswith("."):
            yield path


def remove_temporary(folder: Path) -> None:
    """Remove temporary files left by processes that died."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert any `OSError` raised inside the block into a `StorageError` for ``path``."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> StorageError:
    """Return the error for a path that could not be written."""
    return StorageError(
        f"cannot be written: {error.strerror or error}",
        where=str(path),
        hint="The last checkpoint is intact. Free disk space or fix the permissions, then resume "
        "the run",
    )


def finite(value: Any) -> Any:
    """Return the value with NaN and infinities, which JSON cannot represent, replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
