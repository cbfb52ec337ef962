"""``state/``, the kit's folder for the files of the running software."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mdc_flower.deployment.kits.kits import Kit
from strategies.common.errors import RunError
from strategies.common.files import StorageError

PRIVATE_FOLDER = 0o700


def open_state(kit: Kit) -> Path:
    """Create a kit's state folder and FLWR_HOME, for their owner only; return the latter.

    Raises
    ------
    StorageError
        If a folder cannot be created, or is not writable.
    """
    home = kit.state / "flwr"
    try:
        for folder in (kit.state, home):
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        if stat.S_IMODE(kit.state.stat().st_mode) & 0o077:
            kit.state.chmod(PRIVATE_FOLDER)
        if not os.access(kit.state, os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission")
    except OSError as error:
        raise StorageError(
            f"the folder is not writable: {error.strerror}",
            where=str(kit.state),
            hint="It must belong to the user who runs this command, on a writable disk",
        ) from None
    return home


@contextmanager
def only_one(kit: Kit, name: str, refusal: str) -> Iterator[None]:
    """Hold the kit's lock ``name`` during the block, so that no other process can.

    Raises
    ------
    RunError
        With the text ``refusal``, if another process holds the lock.
    StorageError
        See `open_state`.
    """
    open_state(kit)
    path = kit.state / f".{name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(refusal, where=str(path)) from None
    except OSError as error:
        raise StorageError(
            f"the file cannot be written: {error.strerror}", where=str(path)
        ) from None
    try:
        yield
    finally:
        lock.release()
