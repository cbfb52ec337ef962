"""Start private Flower processes, and stop them together with their descendants.

Flower's local SuperLink is shared by all runs on a machine and continues after a run ends. A
process started here has its own port and its own FLWR_HOME, and stops together with all its
descendants.
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

THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
"""glibc's environment variable for the size from which freed memory is returned at once."""


class SuperLink(NamedTuple):
    """A running SuperLink: its port and its process."""

    port: int
    process: "subprocess.Popen[bytes]"


class Tls(NamedTuple):
    """A SuperLink's PEM files for TLS: CA certificate, its own certificate, and its key."""

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

    The caller must hold `mdc_flower.engines.guardian.guarded` for ``home``, which ends processes
    that lose their parent.

    Parameters
    ----------
    home
        Folder to use as FLWR_HOME. Its connection `CONNECTION` points to this SuperLink.
    log_path
        File to append the output to.
    options
        Further options, such as ``--simulation``.
    port
        Port to listen on; 0 for a free one.
    command
        Command to start instead of ``flower-superlink``.
    listen
        Address to bind; by default, the loopback interface.
    tls
        Files for TLS; None for plain HTTP.
    variables
        Further environment variables.

    Raises
    ------
    RunError
        If the SuperLink does not answer within `START_TIMEOUT_S` seconds.
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
    """Point the connection `CONNECTION` in a FLWR_HOME to a SuperLink; use TLS if ``ca``."""
    security = {"root-certificates": str(ca)} if ca else {"insecure": True}
    connection = {"address": address, **security}
    config = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    (home / "config.toml").write_text(tomli_w.dumps(config))


def local_address(listen: str, port: int) -> str:
    """Return the address at which this machine reaches a server that listens on ``listen``."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(listen, listen)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, log_path: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a new session; stop it and its descendants after the block."""
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
    """Return this process's environment with the settings that isolate Flower.

    The user's own modules can be imported in Flower's processes as in this one. They come last on
    the path there too: Python must not put the working folder or a script's folder first.
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
        # A SuperLink starts its helper commands by name.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        **_no_proxy(),
    }


def frugal() -> dict[str, str]:
    """Return the variables with which processes that pass models on need less memory.

    Flower cuts a model into chunks of 5 MiB. Once one of them has been freed, glibc would keep the
    memory of all further ones. With a fixed threshold, it returns that of larger ones at once.
    """
    return {THRESHOLD: os.environ.get(THRESHOLD, str(4 * 1024**2))}


def _no_proxy() -> dict[str, str]:
    """Return the variables that keep traffic between Flower's processes off a proxy."""
    # Programs read the lower-case spelling first, and the upper-case one only if that is unset.
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = ",".join([*filter(None, [named]), "localhost", LOOPBACK, "::1"])
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def script(name: str) -> str:
    """Return the path of a command in this Python environment.

    Raises
    ------
    RunError
        If the command is not installed.
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
    """Return a free port of the loopback interface; another process may take it meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_run_status(home: Path) -> str:
    """Return the status of the newest run on the SuperLink that ``home`` points to.

    `flwr run --stream` exits with 0 even if the run failed, so its exit status is not enough.
    """
    try:
        return str(flwr(home, "list")["runs"][0]["status"])
    except (RunError, KeyError, IndexError) as error:
        return f"unknown: {error}"


def run_command(app: Path, *options: str) -> list[str]:
    """Return the command that runs a staged app to its end through the connection `CONNECTION`."""
    return [script("flwr"), "run", str(app), CONNECTION, "--stream", *options]


def flwr(home: Path, *arguments: str) -> dict[str, Any]:
    """Run a ``flwr`` command on the SuperLink that ``home`` points to; return its JSON output.

    Raises
    ------
    RunError
        If the SuperLink does not answer, or refuses the command.
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
        get_local(f"{address}/health", ca)
        return True
    except (OSError, http.client.HTTPException):  # URLError is an OSError
        return False


def get_local(url: str, ca: Path | None) -> bytes:
    """Return the response of this machine's SuperLink; ``url`` has no scheme.

    Raises
    ------
    OSError, http.client.HTTPException
        If the SuperLink does not answer, or answers with an error.
    """
    context = ssl.create_default_context(cafile=ca) if ca else None
    # Use no proxy, even if the environment names one: it would connect to its own machine.
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
    """Stop a process and its descendants: terminate first, then kill."""
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
