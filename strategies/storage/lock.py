"""One coordinator for each run directory.

The operating system holds the lock for the process, and lets it go when the process dies,
however it dies; a file beside it says who has it, for people.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from strategies.common.errors import RunError
from strategies.common.files import write_atomically

LOCK, OWNER = ".coordinator.lock", "coordinator.json"


class LockedError(RunError):
    """Another coordinator works in the run directory."""


@contextmanager
def coordinator_lock(folder: Path) -> Iterator[dict[str, Any]]:
    """Hold a run directory's lock inside the block; yield who had it before and died, if any.

    Raises
    ------
    LockedError
        If another process holds it, saying which.
    StorageError
        If the directory cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = read_owner(folder)
        raise LockedError(
            "another coordinator works in this run directory",
            where=str(folder),
            got=f"process {owner.get('pid', '?')} on {owner.get('host', '?')}",
            hint="Wait for it to end, or stop it; a lock of a dead process lets go by itself",
        ) from None
    try:
        dead = read_owner(folder)
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time(), 3)}
        write_atomically(folder / OWNER, json.dumps(mine).encode())
        try:
            yield dead
        finally:
            with suppress(OSError):  # what ended the block says more
                (folder / OWNER).unlink(missing_ok=True)
    finally:
        lock.release()


def read_owner(folder: Path) -> dict[str, Any]:
    """Return who holds the lock, or held it and died; empty if nobody."""
    try:
        return dict(json.loads((folder / OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
