"""A worker that the answering process itself starts, for a site with several processes.

`mdc site start` looks after the worker of a real site. A simulated site, and a real one whose
SuperNode runs without `mdc site start`, get theirs here; it ends together with this process.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdc_flower.common.launch import Launch
from mdc_flower.site.error_replies import is_simulated

STOP_S = 20.0
"""Seconds to wait until the processes have ended; they end each other after half a minute."""


class _Worker:
    """A running worker, its folder, and the run and launch that it serves."""

    def __init__(self, serves: tuple[int, Launch]) -> None:
        self.serves = serves
        self.folder = Path(tempfile.mkdtemp(prefix="mdc-ranks-"))
        # The worker must import the same project, wherever Flower has unpacked it.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = serves[1].command(self.folder)
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its children see that it is gone
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


_started: list[_Worker] = []


def launch_of(node_config: Mapping[str, Any], run_config: Mapping[str, Any]) -> Launch:
    """Return how a site's processes are started; the run sets the ranks of simulated sites.

    Raises
    ------
    ConfigError
        If a value is not valid.
    """
    default = run_config.get("ranks-per-site", 1) if is_simulated(node_config) else 1
    known = set(Launch.keys())
    own = {key: value for key, value in node_config.items() if key in known}
    return Launch.read({"ranks": default, **own}, "node config")


def own_worker(run_id: int, launch: Launch) -> Path:
    """Return the folder of a running worker, started again if it has ended."""
    serves = (run_id, launch)
    if _started and (_started[0].serves != serves or _started[0].process.poll() is not None):
        stop()
    if not _started:
        _started.append(_Worker(serves))
    return _started[0].folder


@atexit.register
def stop() -> None:
    """Stop the worker, if one runs."""
    while _started:
        _started.pop().stop()
