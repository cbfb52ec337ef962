"""End what this process has started, even when this process is killed.

Flower and Ray start processes in sessions of their own, so nothing ends them when ``mdc`` is killed
(SIGKILL, out of memory). `guarded` therefore starts a second, small process: this file, run as a
script. It holds one end of a pipe, the other end closes when ``mdc`` is gone, and then it kills
every process that has the guarded FLWR_HOME. This works on Linux and macOS alike.

The script imports the standard library, psutil and filelock only, so that it starts at once.
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
"""File in a guarded FLWR_HOME; whoever started the processes holds its lock while it lives."""

KILL_S = 10.0
"""Seconds that killed processes have to disappear."""

SOCKET_PATH = 107 if sys.platform == "linux" else 103
"""The longest path of a Unix socket, in bytes."""

RAY_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""What Ray appends to its folder; its longest socket path."""


@contextmanager
def guarded(home: Path, *, remove: bool = False) -> Iterator[None]:
    """Let no process with this FLWR_HOME outlive the block, or this process.

    Those of an earlier process that was killed together with its guardian are ended first.

    Parameters
    ----------
    home
        The FLWR_HOME; the folder must exist.
    remove
        Whether the folder is removed as well.
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
        If no folder for temporary files can be written to.
    """
    home = Path(tempfile.mkdtemp(prefix="mdc-", dir=_short_folder()))
    with guarded(home, remove=True):
        yield home


def _short_folder() -> Path:
    """Return the folder for temporary files, or ``/tmp`` where Ray's sockets do not fit into it."""
    chosen = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    length = len(os.fsencode(chosen)) + len("/mdc-12345678" + RAY_SOCKET)
    return chosen if length <= SOCKET_PATH else Path("/tmp")


def end_orphan(pid: int) -> bool:
    """Kill a process and its kin if `guarded` started them and whoever did so is dead.

    Parameters
    ----------
    pid
        A process of this machine.

    Returns
    -------
    bool
        Whether it was such an orphan.
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
    except (Timeout, OSError):  # guarded by somebody who lives, or just being removed
        return False
    return True


def stop_strays(home: Path) -> None:
    """Kill every process with this FLWR_HOME, and what such processes have started.

    This process and those it comes from are spared: a person may have set FLWR_HOME himself.
    """
    spared = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    deadline = time.monotonic() + KILL_S
    # Again until there are none: one may have started another while it was looked for.
    while (strays := _strays(home, spared)) and time.monotonic() < deadline:
        for stray in strays:
            try:
                stray.kill()
            except psutil.Error:  # ended meanwhile, or may not be killed
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
            # Some rename themselves, and write over their environment: Ray's workers do.
            found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.Error:
            continue
    return [process for pid, process in found.items() if pid not in spared]


def home_of(process: psutil.Process) -> str | None:
    """Return a process's FLWR_HOME; None where it has none, or cannot be looked into."""
    try:
        return process.environ().get("FLWR_HOME")
    except (psutil.Error, OSError):  # ended meanwhile, or another user's
        return None


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that was killed may stay as a zombie for long."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _guard(home: Path, remove: bool) -> None:
    # Where a whole machine or service is told to end, it has to outlive what it ends.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()  # until whoever started this is gone
    stop_strays(home)
    if remove:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]), "--remove" in sys.argv)
