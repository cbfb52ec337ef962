"""Submit a run to a SuperLink, and wait until it ends or one of its processes dies."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from mdc_flower.config import RunConfig
from mdc_flower.engines.app_bundle import stage_app
from mdc_flower.engines.flower_processes import (
    COMPLETED,
    environment,
    last_run_status,
    run_command,
    running,
)
from mdc_flower.engines.guardian import end_orphan, is_alive
from strategies.common.errors import (
    ConfigError,
    EngineError,
    MdcError,
    QuorumError,
    RunError,
    SiteInputError,
)
from strategies.storage.lock import read_owner
from strategies.storage.run_directory import REFUSED, SUMMARY, read_events

ENDING_S = 20.0
"""Seconds to wait for Flower's engine to end after its ServerApp has ended."""

LOOK_S = 0.5
"""Seconds between two checks that the processes of a run are alive."""


def run_through(
    config: RunConfig,
    home: Path,
    log_path: Path,
    is_alive: Callable[[], bool],
    options: Sequence[str] = (),
    failure: Callable[[int | None], str] = lambda coordinator: "",
) -> None:
    """Run a config on the SuperLink that a FLWR_HOME points to; return when it has finished.

    Parameters
    ----------
    config
        The run config; ``output-dir`` must be absolute and on this machine.
    home
        FLWR_HOME whose connection points to the SuperLink; the app is staged in it.
    log_path
        File to append the output of ``flwr run`` to.
    is_alive
        Returns whether the SuperLink runs.
    options
        Further options of ``flwr run``.
    failure
        Takes the id of the coordinating process; returns why the engine has failed, or an empty
        text if it has not.

    Raises
    ------
    EngineError
        If a process died, or the run failed in a way that a restart may fix.
    QuorumError
        If too few sites returned an update.
    ConfigError, SiteInputError
        If config, data or model is not usable: before the run began, or at sites.
    RunError
        If the engine did not start, or the run failed for another reason.
    """
    run_dir = Path(config.output_dir)
    earlier, started = _summary(run_dir), time.time()
    with _submitted(config, home, log_path, options) as process:
        _wait(run_dir, process, log_path, is_alive, failure, earlier)
    summary = _new_summary(run_dir, earlier)
    if summary.get("status") == "finished":
        return  # asking Flower as well would take seconds
    status = last_run_status(home)
    if status != COMPLETED:
        refused = [e for e in read_events(run_dir, REFUSED) if e["time"] >= started]
        if refused:
            summary = {"exit-status": ConfigError.exit_code, "error": refused[-1]["error"]}
        raise _run_error(summary, status, log_path)


@contextmanager
def _submitted(
    config: RunConfig, home: Path, log_path: Path, options: Sequence[str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Submit the run; yield the process of ``flwr run``."""
    app = stage_app(home / "app" / "mdc-flower")
    run_config = home / "run-config.toml"
    run_config.write_text(tomli_w.dumps(config.to_flower()))
    command = run_command(app, "--run-config", str(run_config), *options)
    with running(command, environment(home), home, log_path) as process:
        yield process


def _wait(
    run_dir: Path,
    submitted: "subprocess.Popen[bytes]",
    log_path: Path,
    is_alive: Callable[[], bool],
    failure: Callable[[int | None], str],
    earlier: Mapping[str, Any],
) -> None:
    """Wait until the run ends; raise if a process that it needs dies.

    A simulated site that hangs keeps Flower's engine running forever. Then the run counts as ended
    `ENDING_S` seconds after the ServerApp has written that it ended.
    """
    dead = read_owner(run_dir).get("pid")
    started = time.time()
    ended_at: float | None = None
    while submitted.poll() is None:
        if not is_alive():
            raise EngineError("the SuperLink died", where=f"log {log_path}")
        owner = read_owner(run_dir).get("pid")
        coordinator = owner if owner != dead else None
        if _new_summary(run_dir, earlier).get("status", "running") != "running":
            ended_at = ended_at or time.monotonic()
            if time.monotonic() - ended_at >= ENDING_S:
                return
        elif reason := failure(coordinator):
            raise _engine_failure(run_dir, reason, started, log_path)
        # Flower itself needs a minute to notice, and then reports only that the run failed.
        if coordinator is not None and not _process_is_alive(coordinator):
            raise EngineError("the coordinator died", where=f"process {coordinator}")
        time.sleep(LOOK_S)
    # `flwr run` ends when the SuperLink or the engine ends, and may be noticed first.
    if not is_alive():
        raise EngineError("the SuperLink died", where=f"log {log_path}")
    is_open = _new_summary(run_dir, earlier).get("status", "running") == "running"
    if is_open and (reason := failure(None)):
        raise _engine_failure(run_dir, reason, started, log_path)


def _engine_failure(run_dir: Path, reason: str, started: float, log_path: Path) -> RunError:
    """Return the error for a failed engine; an engine that never started is not restarted."""
    has_run = any(event["time"] >= started for event in read_events(run_dir, "run-started"))
    kind = EngineError if has_run else RunError
    what = "failed" if has_run else "did not start"
    return kind(f"the simulation engine {what}: {reason}", hint=f"The log is {log_path}")


def wait_for_coordinator_to_end(run_dir: Path, patience_s: float = ENDING_S) -> None:
    """Wait until no process coordinates a run in a directory, at most ``patience_s`` seconds."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        owner = read_owner(run_dir).get("pid")
        if owner is None or not _process_is_alive(owner):
            return
        time.sleep(LOOK_S)


def end_orphaned_coordinator(run_dir: Path) -> None:
    """End the process that coordinates a run if the command that started it was killed."""
    owner = read_owner(run_dir)
    if "pid" in owner and owner.get("host") == socket.gethostname():
        end_orphan(owner["pid"])


def _process_is_alive(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _run_error(summary: Mapping[str, Any], status: str, log_path: Path) -> MdcError:
    """Return the error for a run that did not finish, with the ServerApp's message if any."""
    message = summary.get("error") or f"the run ended with status {status!r}"
    hint = f"The log is {log_path}"
    # A refused run has no summary of its own, and nothing to resume.
    unusable = SiteInputError if "status" in summary else ConfigError
    for error in (unusable, QuorumError):
        if summary.get("exit-status") == error.exit_code:
            return error(message, hint=hint)
    kind = EngineError if summary.get("restart", True) else RunError
    return kind(message, where="Flower", hint=hint)


def _new_summary(run_dir: Path, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary if it was written since; an earlier process's summary does not count."""
    summary = _summary(run_dir)
    return summary if summary != earlier else {}


def _summary(run_dir: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run_dir / SUMMARY).read_text()))
    except (OSError, ValueError):
        return {}
