"""Notice that the simulation engine has failed, and in which words it says so.

Flower's engine goes on for minutes without Ray: its ServerApp waits for sites that nobody
simulates.
"""

import re
import time
from pathlib import Path

import psutil

from mdc_flower.console.tail import Tail
from mdc_flower.engines.guardian import is_alive

REASON = re.compile(r"ERROR.*: +An exception occur+ed ?!! (?P<reason>.+)")
"""The line in which Flower's engine says what ended it."""

DAEMONS = frozenset({"gcs_server", "raylet"})
"""The processes of Ray's without which nothing is simulated."""

GRACE_S = 5.0
"""Seconds in which the engine may still say why, after such a process died: it ends Ray first."""


class RayWatch:
    """Watches the log of a simulation, and Ray's own processes.

    Parameters
    ----------
    log_path
        The engine's log; what is in it already is another run's.
    """

    def __init__(self, log_path: Path) -> None:
        self._log = Tail(log_path)
        self._daemons: dict[str, psutil.Process] = {}
        self._died_at: float | None = None

    def failure(self, coordinator: int | None) -> str:
        """Return why the engine has failed; empty while it has not.

        Parameters
        ----------
        coordinator
            The process that coordinates the run, which has started Ray; None before there is one.
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
        return f"Ray's process {dead[0]} died; it may have been killed for want of memory"


def _daemons_of(pid: int) -> dict[str, psutil.Process]:
    try:
        children = psutil.Process(pid).children()
        return {name: child for child in children if (name := child.name()) in DAEMONS}
    except psutil.Error:  # ended meanwhile
        return {}
