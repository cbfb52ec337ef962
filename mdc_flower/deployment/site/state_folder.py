"""``state/``, the folder of a kit in which the running software keeps its own files."""

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
    """Make a kit's state folder and FLWR_HOME in it, for their owner only; return the latter.

    Raises
    ------
    StorageError
        If they cannot be made, or files cannot be written there.
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
            f"nothing can be written there: {error.strerror}",
            where=str(kit.state),
            hint="It must belong to the user who runs this, on a disk that is not read-only",
        ) from None
    return home


@contextmanager
def only_one(kit: Kit, name: str, refusal: str) -> Iterator[None]:
    """Let no other process do the same with this kit meanwhile.

    Raises
    ------
    RunError
        With the text ``refusal``, if one does.
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
        raise StorageError(f"cannot be written: {error.strerror}", where=str(path)) from None
    try:
        yield
    finally:
        lock.release()
