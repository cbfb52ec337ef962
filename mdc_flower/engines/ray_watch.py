"""Detect that the simulation engine has failed, and find the reason in its log.

Without Ray, Flower's engine continues for minutes: its ServerApp waits for sites that no process
simulates.
"""

import re
import time
from pathlib import Path

import psutil

from mdc_flower.console.tail import Tail
from mdc_flower.engines.guardian import is_alive

REASON = re.compile(r"ERROR.*: +An exception occur+ed ?!! (?P<reason>.+)")
"""The line in which Flower's engine logs why it ended."""

DAEMONS = frozenset({"gcs_server", "raylet"})
"""The Ray processes that a simulation needs."""

GRACE_S = 5.0
"""Seconds to wait for the reason after such a process died: the engine ends Ray before it logs."""


class RayWatch:
    """Watches a simulation's log and Ray's processes.

    Parameters
    ----------
    log_path
        The engine's log; its present content belongs to another run.
    """

    def __init__(self, log_path: Path) -> None:
        self._log = Tail(log_path)
        self._daemons: dict[str, psutil.Process] = {}
        self._died_at: float | None = None

    def failure(self, coordinator: int | None) -> str:
        """Return why the engine has failed; empty if it has not.

        Parameters
        ----------
        coordinator
            Id of the process that coordinates the run and has started Ray; None before it exists.
        """
        for line in self._log.new_lines():
            if found := REASON.search(line.decode("utf-8", "replace")):
                return found["reason"].strip()
        if coordinator is not None and len(self._daemons) < len(DAEMONS):
            self._daemons |= _daemons_of(coordinator)
        dead = [name for name, process in self._daemons.items() if not is_alive(process)]
        if not dead:
            return ""
        self._died_at = self._died_at or time.monotonic()
        if time.monotonic() - self._died_at < GRACE_S:
            return ""
        return f"Ray's process {dead[0]} died; the machine may have run out of memory"


def _daemons_of(pid: int) -> dict[str, psutil.Process]:
    try:
        children = psutil.Process(pid).children()
        return {name: child for child in children if (name := child.name()) in DAEMONS}
    except psutil.Error:  # the process has ended
        return {}
