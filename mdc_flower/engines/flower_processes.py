"""Start Flower's own processes with nothing shared, and stop them with nothing left behind.

Flower's local SuperLink is shared by all that runs on a machine and stays when a run ends. A
process started here has a port and a FLWR_HOME of its own, and is stopped together with all
that came of it.
"""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import tomli_w

from mdc_flower.common.references import USERS_FOLDER, users_folder
from strategies.common.errors import RunError

CONNECTION = "mdc"
"""Name of the SuperLink connection in the FLWR_HOME of a `superlink`."""

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
HEALTH_TIMEOUT_S = 2.0
COMPLETED = "finished:completed"


class SuperLink(NamedTuple):
    """A SuperLink that runs: its port, and its process."""

    port: int
    process: "subprocess.Popen[bytes]"


class Tls(NamedTuple):
    """The PEM files that a SuperLink speaks TLS with: its authority's, its own, and its key."""

    ca: Path
    certificate: Path
    key: Path


@contextmanager
def superlink(
    home: Path,
    log_path: Path,
    options: Sequence[str] = (),
    port: int = 0,
    *,
    command: Sequence[str] = (),
    listen: str = LOOPBACK,
    tls: Tls | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[SuperLink]:
    """Run a SuperLink; stop it and its descendants after the block.

    The caller holds `mdc_flower.engines.guardian.guarded` for ``home``, for what loses its parent.

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
    command
        What to start in place of ``flower-superlink``.
    listen
        Address that it binds; the loopback interface's by default.
    tls
        With what it speaks TLS; None for plain HTTP.
    variables
        More environment variables.

    Raises
    ------
    RunError
        If it does not answer within `START_TIMEOUT_S` seconds.
    """
    port = port or free_port()
    address = local_address(listen, port)
    connect(home, address, tls.ca if tls else None)
    start = [*(command or [script("flower-superlink")]), "--host", listen, "--port", str(port)]
    if tls:
        start += ["--ssl-ca-certfile", str(tls.ca)]
        start += ["--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key)]
    else:
        start += ["--insecure"]
    env = {**environment(home), **(variables or {})}
    with running([*start, *options], env, home, log_path) as process:
        _wait_until_healthy(process, address, tls.ca if tls else None, log_path)
        yield SuperLink(port, process)


def connect(home: Path, address: str, ca: Path | None) -> None:
    """Let the connection `CONNECTION` in a FLWR_HOME lead to a SuperLink; with TLS if ``ca``."""
    security = {"root-certificates": str(ca)} if ca else {"insecure": True}
    connection = {"address": address, **security}
    config = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    (home / "config.toml").write_text(tomli_w.dumps(config))


def local_address(listen: str, port: int) -> str:
    """Return where a process of this machine reaches what listens on an address."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(listen, listen)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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

    The user's own modules are importable in Flower's processes as in this one, and come last there
    too: Python is not to put the folder that it is started in, or a script's, first.
    """
    return {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": os.environ.get("FLWR_TELEMETRY_ENABLED", "0"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        USERS_FOLDER: users_folder(),
        "PYTHONSAFEPATH": "1",
        # A SuperLink starts its helpers by name.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        **_no_proxy(),
    }


def _no_proxy() -> dict[str, str]:
    """Return the variables that keep what Flower's processes say to each other off a proxy."""
    # Of the two spellings the small one is read first, and the other one only if it is not set.
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = ",".join([*filter(None, [named]), "localhost", LOOPBACK, "::1"])
    return {"no_proxy": hosts, "NO_PROXY": hosts}


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
        return str(flwr(home, "list")["runs"][0]["status"])
    except (RunError, KeyError, IndexError) as error:
        return f"unknown: {error}"


def run_command(app: Path, *options: str) -> list[str]:
    """Return the command that runs a staged app through the connection `CONNECTION` to its end."""
    return [script("flwr"), "run", str(app), CONNECTION, "--stream", *options]


def flwr(home: Path, *arguments: str) -> dict[str, Any]:
    """Return what a command of Flower's says of the SuperLink that ``home`` leads to, in JSON.

    Raises
    ------
    RunError
        If the SuperLink does not answer, or refuses.
    """
    command = [script("flwr"), *arguments, CONNECTION, "--format", "json"]
    where = f"flwr {arguments[0]}"
    try:
        done = subprocess.run(
            command,
            env=environment(home),
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise RunError("the SuperLink does not answer", where=where) from None
    try:
        answer = dict(json.loads(done.stdout))
    except ValueError:
        raise RunError(done.stdout.strip() or done.stderr.strip(), where=where) from None
    if answer.get("success") is False:
        raise RunError(str(answer.get("error-message", answer)), where=where)
    return answer


def is_healthy(address: str, ca: Path | None) -> bool:
    """Return whether a SuperLink answers at an address of this machine."""
    try:
        ask_here(f"{address}/health", ca)
        return True
    except (OSError, http.client.HTTPException):  # URLError is an OSError
        return False


def ask_here(url: str, ca: Path | None) -> bytes:
    """Return what this machine's SuperLink answers; ``url`` is without its scheme.

    Raises
    ------
    OSError, http.client.HTTPException
        If it does not answer, or with an error.
    """
    context = ssl.create_default_context(cafile=ca) if ca else None
    # No proxy, whatever the environment names: it would look on a machine of its own.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    with opener.open(f"{'https' if ca else 'http'}://{url}", timeout=HEALTH_TIMEOUT_S) as response:
        return bytes(response.read())


def _wait_until_healthy(
    process: "subprocess.Popen[bytes]", address: str, ca: Path | None, log_path: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if is_healthy(address, ca):
            return
        time.sleep(0.1)
    state = "did not answer" if process.poll() is None else f"exited with {process.returncode}"
    raise RunError(f"the SuperLink {state}", where=address, hint=f"The log is {log_path}")


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
