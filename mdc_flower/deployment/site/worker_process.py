"""Keep the worker of a site running while the site's SuperNode runs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from mdc_flower.common.launch import Launch
from mdc_flower.engines.flower_processes import running
from mdc_flower.site.handover import WORKER
from mdc_flower.site.worker import ABANDONED

FOLDER = "worker"
"""The worker's folder in the kit's ``state``."""

SINGLE = Launch()
"""A single process."""

LONGEST_PAUSE_S = 60.0
"""Longest pause before a worker that keeps ending is started again, in seconds."""

STEADY_S = 60.0
"""A worker that has run for this many seconds is started again at once."""


class WorkerProcess:
    """The worker of a site; a context manager that stops it at the end.

    Parameters
    ----------
    folder : Path
        The worker's folder; created for its owner only.
    env : Mapping[str, str]
        Environment variables of the worker.
    log_path : Path
        File to append its output to.
    tell : callable
        Called with each line to show to the operator.
    launch : Launch
        With how many processes the site trains.
    node_rank : int
        The number of this machine, from 0.
    """

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str],
        log_path: Path,
        tell: Callable[[str], None],
        launch: Launch = SINGLE,
        node_rank: int = 0,
    ) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._env = env
        self._log_path = log_path
        self._tell = tell
        self._launch = launch
        self._node_rank = node_rank
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._start_at = self._pause_s = 0.0

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment variables with which a ClientApp finds the worker."""
        return {WORKER: str(self._folder)}

    def __enter__(self) -> "WorkerProcess":
        """Start the worker."""
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the worker."""
        self._stack.close()

    def look(self) -> None:
        """Start the worker again if it has ended; tell the operator, unless it ended as planned."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_at:
                self._start()
            return
        status = self._process.poll()
        if status is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it started and left behind
        self._stack.close()
        self._process = None
        if status in (0, ABANDONED):
            self._start()
            return
        is_steady = now - self._started_at >= STEADY_S
        self._pause_s = 0.0 if is_steady else min(LONGEST_PAUSE_S, 2 * self._pause_s + 1.0)
        self._start_at = now + self._pause_s
        after = f" in {self._pause_s:.0f} s" if self._pause_s else ""
        self._tell(f"the worker ended ({_ending(status)}); it is started again{after}")

    def _start(self) -> None:
        command = self._launch.command(self._folder, self._node_rank)
        self._started_at = time.monotonic()
        self._process = self._stack.enter_context(
            running(command, self._env, Path.cwd(), self._log_path)
        )


def _ending(status: int) -> str:
    """Return how a process ended."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
