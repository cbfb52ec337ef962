"""Work done once on this machine and shared by its processes: locks, and arrays on disk.

All workers of a simulation want the same decoded images. The first one to come makes them,
under a lock; every one then maps the same pages of the same file.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

NamedArrays = Mapping[str, NDArray[np.generic]]


def cache_dir() -> Path:
    """Return the folder for derived files: ``MDC_CACHE_DIR``, or under the user's cache."""
    chosen = os.environ.get("MDC_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(chosen) if chosen else Path(base) / "mdc-flower"
    path.mkdir(parents=True, exist_ok=True)
    return path


def machine_lock(name: str) -> FileLock:
    """Return a lock that processes of this machine share by name."""
    return FileLock(cache_dir() / f"{name}.lock")


def cached_arrays(key: str, make: Callable[[], NamedArrays]) -> dict[str, NDArray[np.generic]]:
    """Return the arrays stored under ``key``, memory-mapped; make and store them if missing.

    ``key`` must depend on everything that ``make`` reads. Arrays are stored as .npy files in
    a folder that is renamed into place, so that a folder that exists is complete.
    """
    folder = cache_dir() / key
    if not folder.is_dir():
        with machine_lock(key):
            if not folder.is_dir():
                _store(folder, make())
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def _store(folder: Path, arrays: NamedArrays) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
