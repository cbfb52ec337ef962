"""Processes that tests start: set their signals, and find those left behind.

A process belongs to this test session if its environment has the session's mark. This also finds
indirect children, such as a SuperLink that Flower leaves behind, or a Ray worker.
"""

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from mdc_flower.engines.guardian import home_of

MARK = "MDC_FLOWER_TEST_SESSION"
SHARED = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
"""Helper processes that Python starts once and keeps for later children."""

PATIENCE_S = 20.0


def default_signals_for_children() -> None:
    """Give child processes default signal handlers, and mark them with this session's id.

    A background shell and `nohup` start pytest with SIGINT or SIGHUP ignored, and children inherit
    that. A signal with a handler, in contrast, is reset to its default in a new program.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    os.environ[MARK] = uuid.uuid4().hex


@contextmanager
def ends_what_it_starts() -> Iterator[None]:
    """Kill processes that the block started and left running, and fail if there are any."""
    before = _descendants()
    yield
    left = [process for process in _descendants() if process not in before]
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_S) if left else ([], [])
    named = [_name(process) for process in alive]
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=PATIENCE_S)
    assert not named, f"the test left processes running: {named}"


def kill_strays(folder: Path) -> None:
    """Kill every process whose `FLWR_HOME` is in a folder."""
    for stray in psutil.process_iter():
        if str(folder) in (home_of(stray) or ""):
            stray.kill()


def _descendants() -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _is_ours(process)]


def _is_ours(process: psutil.Process) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get(MARK) != os.environ[MARK]:
            return False
        return not any(name in " ".join(process.cmdline()) for name in SHARED)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _name(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"{process.pid}, which has ended by now"
