"""Run a simulation on Ray: a SuperLink of our own, `flwr run`, and nothing left behind.

Flower's own local SuperLink is shared by all that runs on a machine and stays when the run
ends. Here each run gets one on a free port, with a FLWR_HOME of its own, and every process
that came of it is stopped at the end, however the run ends.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import tomli_w

from mdc_flower.config import RunConfig
from mdc_flower.engines.app_bundle import stage_app
from strategies.errors import RunError
from strategies.journal import SUMMARY

CONNECTION = "mdc"
START_TIMEOUT_S = 60.0


def run_on_ray(
    config: RunConfig,
    num_sites: int,
    num_cpus: int,
    gpus_per_site: float = 0.0,
    log_path: Path | None = None,
) -> None:
    """Run a whole simulation through Flower's simulation engine, and return when it finished.

    Parameters
    ----------
    config
        The run config; ``output-dir`` must be absolute.
    num_sites
        Sites to simulate.
    num_cpus
        Cores that Ray may use; ``num_cpus // threads-per-site`` sites train at a time.
    gpus_per_site
        Share of a GPU that each site takes; 0 for none.
    log_path
        Where the SuperLink's and the app's output go; the default is ``engine.log`` in the
        run directory.

    Raises
    ------
    RunError
        If the SuperLink does not start, or the run does not end as completed.
    """
    run_dir = Path(config.output_dir)
    log_path = log_path or run_dir / "engine.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="mdc-flower-"))
    try:
        with log_path.open("ab") as log, _superlink(home, log_path, log.fileno()) as env:
            app = stage_app(home / "app" / "mdc-flower")
            run_config = home / "run-config.toml"
            run_config.write_text(tomli_w.dumps(config.to_flower()))
            federation = {
                "num-supernodes": num_sites,
                "client-resources-num-cpus": config.threads_per_site,
                "client-resources-num-gpus": gpus_per_site,
                "init-args-num-cpus": max(num_cpus, config.threads_per_site),
            }
            subprocess.run(
                [
                    _script("flwr"),
                    "run",
                    str(app),
                    CONNECTION,
                    "--stream",
                    "--run-config",
                    str(run_config),
                    "--federation-config",
                    " ".join(f"{k}={v}" for k, v in federation.items()),
                ],
                env=env,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
            status = _run_status(env, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if status != "finished:completed":
        raise RunError(
            _reason(run_dir) or f"the run ended as {status!r}",
            where="simulation engine",
            hint=f"The log is {log_path}",
        )


@contextmanager
def _superlink(home: Path, log_path: Path, log: int) -> Iterator[dict[str, str]]:
    """Start a SuperLink; yield the environment for the commands that use it; stop it after."""
    port = _free_port()
    env = _environment(home)
    (home / "config.toml").write_text(
        tomli_w.dumps(
            {
                "superlink": {
                    "default": CONNECTION,
                    CONNECTION: {"address": f"127.0.0.1:{port}", "insecure": True},
                }
            }
        )
    )
    process = subprocess.Popen(
        [
            _script("flower-superlink"),
            "--insecure",
            "--simulation",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--disable-runtime-dependency-installation",
        ],
        env=env,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        _wait_until_healthy(process, port, log_path)
        yield env
    finally:
        _stop_tree(process)


def _environment(home: Path) -> dict[str, str]:
    """Return this process's environment with what keeps a run to itself."""
    # The user's own modules are importable here, and must be in the engine's processes.
    user_paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": os.environ.get("FLWR_TELEMETRY_ENABLED", "0"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "PYTHONPATH": os.pathsep.join(user_paths),
        # SuperLink starts its helpers by name.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
    }


def _script(name: str) -> str:
    """Return the path of a command of this Python environment."""
    path = shutil.which(name, path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.defpath}")
    if path is None:
        raise RunError(
            "the command is not installed",
            where=name,
            expected=f"flwr[simulation] in the environment of {sys.executable}",
        )
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def _run_status(env: Mapping[str, str], cwd: Path) -> str:
    """Return the status of the one run of our SuperLink: `flwr run` exits 0 in any case."""
    done = subprocess.run(
        [_script("flwr"), "list", CONNECTION, "--format", "json"],
        env=dict(env),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        runs = json.loads(done.stdout)["runs"]
        return str(runs[0]["status"])
    except (ValueError, KeyError, IndexError):
        return f"unknown: {done.stdout.strip() or done.stderr.strip()}"


def _reason(run_dir: Path) -> str:
    """Return the error that the ServerApp left in the summary, if it came so far."""
    try:
        return str(json.loads((run_dir / SUMMARY).read_text()).get("error", ""))
    except (OSError, ValueError):
        return ""


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
