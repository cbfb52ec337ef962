"""End the processes that this process started, even if this process is killed.

Flower and Ray start processes in new sessions, so nothing ends them when ``mdc`` is killed
(SIGKILL, out of memory). `guarded` therefore starts a small second process, the guardian: this
file, run as a script. The guardian reads from a pipe to ``mdc``. When ``mdc`` is gone, the pipe
closes, and the guardian kills every process with the guarded FLWR_HOME. This works on Linux and
macOS.

The script imports only the standard library, psutil and filelock, so that it starts fast.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

ALIVE = ".alive.lock"
"""File in a guarded FLWR_HOME; the process that called `guarded` holds its lock while it runs."""

KILL_S = 10.0
"""Seconds to wait for killed processes to disappear."""

SOCKET_PATH = 107 if sys.platform == "linux" else 103
"""Maximum length of a Unix socket path, in bytes."""

RAY_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest socket path that Ray appends to its folder."""


@contextmanager
def guarded(home: Path, *, remove: bool = False) -> Iterator[None]:
    """End all processes with this FLWR_HOME when the block or this process ends.

    Processes left by an earlier process that was killed together with its guardian end first.

    Parameters
    ----------
    home
        The FLWR_HOME; the folder must exist.
    remove
        Whether to remove the folder as well.
    """
    with FileLock(home / ALIVE):
        stop_strays(home)
        command = [sys.executable, "-P", __file__, str(home), *(["--remove"] if remove else [])]
        env = {key: value for key, value in os.environ.items() if key != "FLWR_HOME"}
        guardian = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=env, cwd="/", start_new_session=True
        )
        try:
            yield
        finally:
            stop_strays(home)
            guardian.kill()
            guardian.communicate()
            if remove:
                shutil.rmtree(home, ignore_errors=True)


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Yield a guarded FLWR_HOME whose path is short enough for Ray; remove it after the block.

    Raises
    ------
    OSError
        If no folder for temporary files is writable.
    """
    home = Path(tempfile.mkdtemp(prefix="mdc-", dir=_short_folder()))
    with guarded(home, remove=True):
        yield home


def _short_folder() -> Path:
    """Return the folder for temporary files, or ``/tmp`` if its path is too long for Ray."""
    chosen = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    length = len(os.fsencode(chosen)) + len("/mdc-12345678" + RAY_SOCKET)
    return chosen if length <= SOCKET_PATH else Path("/tmp")


def end_orphan(pid: int) -> bool:
    """Kill a guarded process and all others of its FLWR_HOME if the guarding process is dead.

    Parameters
    ----------
    pid
        Process id on this machine.

    Returns
    -------
    bool
        Whether the process was such an orphan.
    """
    try:
        home = home_of(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
    if home is None or not (lock := Path(home, ALIVE)).is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            stop_strays(Path(home))
    except (Timeout, OSError):  # the guarding process is alive, or is removing the folder
        return False
    return True


def stop_strays(home: Path) -> None:
    """Kill every process with this FLWR_HOME, and their descendants.

    This process and its ancestors are spared, because the user may have set FLWR_HOME.
    """
    spared = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    deadline = time.monotonic() + KILL_S
    # Repeat until none is left: a process may start another one during the search.
    while (strays := _strays(home, spared)) and time.monotonic() < deadline:
        for stray in strays:
            try:
                stray.kill()
            except psutil.Error:  # it has ended, or we may not kill it
                continue
        while any(map(is_alive, strays)) and time.monotonic() < deadline:
            time.sleep(0.02)


def _strays(home: Path, spared: set[int]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid in spared or home_of(process) != str(home) or not is_alive(process):
            continue
        found[process.pid] = process
        try:
            # Ray's workers rename themselves and overwrite their environment, so look for children.
            found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.Error:
            continue
    return [process for pid, process in found.items() if pid not in spared]


def home_of(process: psutil.Process) -> str | None:
    """Return a process's FLWR_HOME; None if it is unset or cannot be read."""
    try:
        return process.environ().get("FLWR_HOME")
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return None


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; a zombie does not count, and may remain for long."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _guard(home: Path, remove: bool) -> None:
    # When a whole machine or service stops, this process must outlive the ones it kills.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()  # returns when the parent process is gone
    stop_strays(home)
    if remove:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]), "--remove" in sys.argv)
