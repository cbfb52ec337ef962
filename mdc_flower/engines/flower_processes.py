"""Start Flower's own processes with nothing shared, and stop them with nothing left behind.

Flower's local SuperLink is shared by all that runs on a machine and stays when a run ends. A
process started here has a port and a FLWR_HOME of its own, and is stopped together with all
that came of it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import tomli_w

from strategies.errors import RunError

CONNECTION = "mdc"
"""Name of the SuperLink connection in the FLWR_HOME of a `superlink`."""

START_TIMEOUT_S = 60.0
COMPLETED = "finished:completed"


class SuperLink(NamedTuple):
    """A SuperLink that runs: its port on the loopback interface, and its process."""

    port: int
    process: "subprocess.Popen[bytes]"


@contextmanager
def superlink(
    home: Path, log_path: Path, options: Sequence[str] = (), port: int = 0
) -> Iterator[SuperLink]:
    """Run a SuperLink on the loopback interface; stop it and all that came of it after the block.

    Parameters
    ----------
    home
        Becomes its FLWR_HOME; the connection `CONNECTION` in it leads to this SuperLink.
    log_path
        File that its output is appended to.
    options
        More options, such as ``--simulation``.
    port
        Its port; 0 for a free one.

    Raises
    ------
    RunError
        If it does not answer within `START_TIMEOUT_S` seconds.
    """
    port = port or free_port()
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    config = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    (home / "config.toml").write_text(tomli_w.dumps(config))
    command = [script("flower-superlink"), "--insecure", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--disable-runtime-dependency-installation", *options]
    try:
        with running(command, environment(home), home, log_path) as process:
            _wait_until_healthy(process, port, log_path)
            yield SuperLink(port, process)
    finally:
        _stop_strays(home)


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, log_path: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a session of its own; stop it and its descendants after the block."""
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop_tree(process)


def environment(home: Path) -> dict[str, str]:
    """Return this process's environment with what keeps Flower to itself.

    The current folder joins PYTHONPATH: a user's own modules are importable in this process
    and must be in Flower's.
    """
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": os.environ.get("FLWR_TELEMETRY_ENABLED", "0"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "PYTHONPATH": os.pathsep.join(paths),
        # A SuperLink starts its helpers by name.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
    }


def script(name: str) -> str:
    """Return the path of a command of this Python environment.

    Raises
    ------
    RunError
        If it is not installed.
    """
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        raise RunError(
            "the command is not installed",
            where=name,
            expected=f"flwr[simulation] in the environment of {sys.executable}",
        )
    return path


def free_port() -> int:
    """Return a port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_run_status(home: Path) -> str:
    """Return the status of the newest run of the SuperLink that ``home`` leads to.

    `flwr run --stream` exits with 0 also when the run failed; this is where the truth is.
    """
    try:
        done = subprocess.run(
            [script("flwr"), "list", CONNECTION, "--format", "json"],
            env=environment(home),
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return "unknown: the SuperLink does not answer"
    try:
        return str(json.loads(done.stdout)["runs"][0]["status"])
    except (ValueError, KeyError, IndexError):
        return f"unknown: {done.stdout.strip() or done.stderr.strip()}"


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    state = "did not answer" if process.poll() is None else f"exited with {process.returncode}"
    raise RunError(f"the SuperLink {state}", where=f"port {port}", hint=f"The log is {log_path}")


def _stop_strays(home: Path) -> None:
    """Kill what still runs with this FLWR_HOME: children whose parent was killed before them."""
    strays = [process for process in psutil.process_iter() if home_of(process) == str(home)]
    for stray in strays:
        try:
            stray.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(strays, timeout=10.0)


def home_of(process: psutil.Process) -> str | None:
    """Return a process's FLWR_HOME; None where it has none, or cannot be looked into."""
    try:
        return process.environ().get("FLWR_HOME")
    except (psutil.Error, OSError):  # ended meanwhile, or another user's
        return None


def _stop_tree(process: "subprocess.Popen[bytes]", patience_s: float = 10.0) -> None:
    """Stop a process and all that came of it: first asked, then killed."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=1.0)
    for survivor in alive:
        try:
            survivor.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=patience_s)
