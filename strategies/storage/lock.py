"""A lock that admits one coordinator per run directory.

The operating system releases the lock when the process ends, however it ends. A file next to the
lock names the owner for error messages.
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
    """Another coordinator uses the run directory."""


@contextmanager
def coordinator_lock(folder: Path) -> Iterator[dict[str, Any]]:
    """Hold a run directory's lock inside the block; yield the previous owner if it died.

    Raises
    ------
    LockedError
        If another process holds the lock; the error names it.
    StorageError
        If the directory cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = read_owner(folder)
        raise LockedError(
            "another coordinator uses this run directory",
            where=str(folder),
            got=f"process {owner.get('pid', '?')} on {owner.get('host', '?')}",
            hint="Wait for it to end, or stop it. The lock is released when its process ends",
        ) from None
    try:
        dead = read_owner(folder)
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time(), 3)}
        write_atomically(folder / OWNER, json.dumps(mine).encode())
        try:
            yield dead
        finally:
            with suppress(OSError):  # do not hide an exception from the block
                (folder / OWNER).unlink(missing_ok=True)
    finally:
        lock.release()


def read_owner(folder: Path) -> dict[str, Any]:
    """Return the process that holds the lock, or that died while holding it; empty if none."""
    try:
        return dict(json.loads((folder / OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
