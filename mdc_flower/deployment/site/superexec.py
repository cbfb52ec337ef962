"""Flower's SuperExec, which starts the ClientApps of a site quickly.

Flower starts a new Python process for each message, and its imports take more than a second of one
core. Here, each process is a fork of one that has imported everything. There is no public hook for
this, so this file imports private modules of Flower.
"""

import atexit
import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from typing import Any

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec as flower
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import run_clientapp

COMMAND = (sys.executable, "-c", f"from {__name__} import main; main()")
"""Starts the SuperExec. With ``-m``, every fork would import this module again, as its main one."""

PRELOADED = [__name__, "mdc_flower.client_app"]
"""What the forked process has imported. A site runs no other app than the installed one."""

POLL_S = 0.25
"""Seconds between two questions for a message; Flower's default is 1."""


class ForkingExecutor(SubprocessExecutor):
    """Starts ClientApps as forks of Python's fork server.

    That process does nothing else and has no threads, so it is safe to fork.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._processes: list[BaseProcess] = []

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the ClientApp for a message; other tasks start as in Flower."""
        if spec.task_type != TaskType.CLIENT_APP:
            return super().launch(spec)
        certificates = validate_and_resolve_root_certificates(
            spec.root_certificates_path, spec.insecure
        )
        process = self._context.Process(
            target=run_to_the_end,
            kwargs={
                "runtime_api_address": spec.runtime_api_address,
                "token": spec.token,
                "insecure": spec.insecure,
                "certificates": certificates,
                "parent_pid": spec.parent_pid,
                "runtime_dependency_install": spec.runtime_dependency_install,
            },
        )
        try:
            process.start()
        except (OSError, EOFError) as error:  # there is no memory, or no further process
            return LaunchResult.failed(f"the process cannot be forked: {error}")
        self._processes.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Forget the processes that have ended."""
        self._processes = [process for process in self._processes if process.is_alive()]

    def close(self) -> None:
        """End the processes that still run, because Python waits for them before it exits."""
        for process in self._processes:
            process.terminate()


def run_to_the_end(**options: Any) -> None:
    """Run a ClientApp, and then what a process does at its end; forks of Python leave that out."""
    try:
        run_clientapp(**options)
    finally:
        atexit._run_exitfuncs()


def main() -> None:
    """Run the SuperExec with the options on the command line.

    Raises
    ------
    AttributeError
        If this version of Flower selects its executor elsewhere.
    """
    getattr(flower, "get_executor")  # noqa: B009
    os.environ.setdefault(flower._TASK_POLL_INTERVAL_ENV, str(POLL_S))
    vars(flower).update(get_executor=lambda *_, **__: ForkingExecutor())
    flower_superexec()
