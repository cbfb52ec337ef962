"""A cache that the processes of this machine share: locks, and arrays on disk.

All workers of a simulation need the same decoded images. The first worker makes them under a lock.
All workers then map the same pages of the same file.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from strategies.common.errors import ConfigError

NamedArrays = Mapping[str, NDArray[np.generic]]


MAX_GB = "MDC_CACHE_GB"
"""Environment variable with the maximum size of the cache, in GB of 10^9 bytes."""

DEFAULT_MAX_GB = 50.0

UNFINISHED_S = 86400.0
"""Age in seconds after which a folder with a temporary name counts as abandoned."""


def cache_dir() -> Path:
    """Return the cache folder: ``MDC_CACHE_DIR``, or a folder in the user's cache.

    Raises
    ------
    ConfigError
        If the folder cannot be created, or the user has no home folder and sets no other one.
    """
    path = _chosen_folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache folder cannot be created: {error.strerror}",
            where=str(path),
            hint="Set MDC_CACHE_DIR to a folder that can be written to",
        ) from None
    return path


def _chosen_folder() -> Path:
    if chosen := os.environ.get("MDC_CACHE_DIR"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "mdc-flower"
    try:
        return Path.home() / ".cache" / "mdc-flower"
    except RuntimeError:
        raise ConfigError(
            "this user has no home folder for the cache",
            where="MDC_CACHE_DIR",
            hint="Set MDC_CACHE_DIR to a folder that can be written to",
        ) from None


def machine_lock(name: str) -> FileLock:
    """Return a lock that all processes of this machine share by its name."""
    return FileLock(cache_dir() / f"{name}.lock")


def cached_arrays(key: str, make: Callable[[], NamedArrays]) -> dict[str, NDArray[np.generic]]:
    """Return the arrays stored under ``key``, memory-mapped; make and store them if missing.

    ``key`` must depend on everything that ``make`` reads. Arrays are stored as .npy files in
    a folder that is renamed into place, so that every existing folder is complete. If the cache
    exceeds ``MDC_CACHE_GB``, the least recently used entries are removed.
    """
    folder = cache_dir() / key
    if (arrays := _load(folder)) is not None:
        return arrays
    with machine_lock(key):
        if (arrays := _load(folder)) is not None:
            return arrays
        shutil.rmtree(folder, ignore_errors=True)
        _store(folder, make())
        arrays = _load(folder)
    _prune(keep=folder)
    return arrays or {}


def _load(folder: Path) -> dict[str, NDArray[np.generic]] | None:
    """Return the arrays in a folder; None if it does not exist, or is removed meanwhile."""
    try:
        paths = sorted(folder.glob("*.npy"))
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in paths}
        # If the folder is removed while it is listed, some files are missing.
        if not arrays or paths != sorted(folder.glob("*.npy")):
            return None
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a cache that another user fills may be read-only
        os.utime(folder)  # records the last use
    return arrays


def _store(folder: Path, arrays: NamedArrays) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _prune(keep: Path) -> None:
    """Remove the least recently used entries until the rest fits into the cache.

    Processes that have mapped a removed file keep it. The folder ``keep`` stays, whatever its size,
    because the current run needs it.
    """
    entries = sorted((path.stat().st_mtime, path, _size(path)) for path in _stored(keep.parent))
    excess = sum(size for _, _, size in entries) - _max_bytes()
    for _, path, size in entries:
        if excess <= 0:
            return
        if path != keep and _remove(path):
            excess -= size


def _stored(folder: Path) -> Iterator[Path]:
    """Yield the folders of arrays, including unfinished ones that are over a day old."""
    for path in folder.iterdir():
        if path.suffix == ".lock" or not path.is_dir() or _is_being_stored(path):
            continue
        files = list(path.iterdir())
        if files and all(file.suffix == ".npy" for file in files):
            yield path


def _is_being_stored(path: Path) -> bool:
    return path.name.startswith(".") and time.time() - path.stat().st_mtime < UNFINISHED_S


def _remove(path: Path) -> bool:
    """Remove a folder of arrays unless a process is making it; return whether it was removed."""
    try:
        with machine_lock(path.name.lstrip(".")).acquire(timeout=0):
            # Rename it first: a folder that exists under its name must be complete.
            removed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name.lstrip('.')}."))
            path.rename(removed)
            shutil.rmtree(removed)
    except (Timeout, FileNotFoundError):  # another process makes or removes it
        return False
    return True


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _max_bytes() -> float:
    text = os.environ.get(MAX_GB, "")
    try:
        size = float(text or DEFAULT_MAX_GB)
    except ValueError:
        size = math.nan
    if not size >= 0:
        raise ConfigError("not a size in GB", where=MAX_GB, got=text, expected="0 or more")
    return size * 1e9
