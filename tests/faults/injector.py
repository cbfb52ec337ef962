"""Fault injection at a named point of a run, in whichever process reaches it.

`hook` is the test hook of `strategies.common.fault_points`. This module must not import the
project, because Flower's processes import the project from an app bundle. The faults are in a JSON
file. Each happens once, in the first process that reaches it, unless it is repeated.
"""

import errno
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HOOK = "tests.faults.injector:hook"
HOOK_VARIABLE = "MDC_FLOWER_TEST_FAULT_HOOK"
PLAN_VARIABLE = "MDC_FLOWER_TEST_FAULT_PLAN"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes
    ----------
    point : str
        Name of the point; see the calls of `strategies.common.fault_points.reach`.
    kind : str
        ``kill``, ``exit``, ``raise``, ``hang`` or ``disk-full``.
    where : dict
        Values that the point must report. A string matches if the reported value contains it.
    seconds : float
        Duration of a hang.
    repeat : bool
        Whether it happens every time the point is reached.
    """

    point: str
    kind: str
    where: dict[str, Any] = field(default_factory=dict)
    seconds: float = 3600.0
    repeat: bool = False


def plan(folder: Path, faults: Sequence[Fault]) -> dict[str, str]:
    """Write the faults to a file; return the environment variables that activate them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "faults.json"
    path.write_text(json.dumps([asdict(fault) for fault in faults]))
    hook = {HOOK_VARIABLE: HOOK, PLAN_VARIABLE: str(path)}
    return {**hook, "PYTHONPATH": str(Path(__file__).parents[2])}


def hook(point: str, **where: Any) -> None:
    """Trigger every fault that matches this point."""
    path = Path(os.environ[PLAN_VARIABLE])
    for number, fields in enumerate(json.loads(path.read_text())):
        fault = Fault(**fields)
        if fault.point != point or not _fits(fault.where, where):
            continue
        if not fault.repeat and not _first(path.with_suffix(f".{number}.happened")):
            continue
        _happen(fault)


def _fits(wanted: dict[str, Any], known: dict[str, Any]) -> bool:
    return all(
        value in known[key] if isinstance(value, str) else value == known[key]
        for key, value in wanted.items()
    )


def _first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _happen(fault: Fault) -> None:
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(1)
        case "raise":
            raise RuntimeError("injected")
        case "hang":
            time.sleep(fault.seconds)
        case "disk-full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case _:
            raise ValueError(f"unknown kind of fault: {fault.kind}")
