"""Run a simulation on Ray: a SuperLink of our own, `flwr run`, and nothing left behind."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import tomli_w

from mdc_flower.config import RunConfig
from mdc_flower.engines.app_bundle import stage_app
from mdc_flower.engines.flower_processes import (
    COMPLETED,
    CONNECTION,
    environment,
    last_run_status,
    script,
    superlink,
)
from strategies.errors import RunError
from strategies.journal import SUMMARY


def run_on_ray(
    config: RunConfig, num_sites: int, num_cpus: int, gpus_per_site: float = 0.0
) -> None:
    """Run a whole simulation through Flower's simulation engine, and return when it finished.

    The output of SuperLink and app goes to ``engine.log`` in the run directory.

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

    Raises
    ------
    RunError
        If the SuperLink does not start, or the run does not end as completed.
    """
    run_dir = Path(config.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    log_path = run_dir / "engine.log"
    home = Path(tempfile.mkdtemp(prefix="mdc-flower-"))
    federation = {
        "num-supernodes": num_sites,
        "client-resources-num-cpus": config.threads_per_site,
        "client-resources-num-gpus": gpus_per_site,
        "init-args-num-cpus": max(num_cpus, config.threads_per_site),
    }
    try:
        with superlink(home, log_path, ["--simulation"]):
            _submit_and_wait(config, federation, home, log_path)
            status = last_run_status(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if status != COMPLETED:
        raise RunError(
            _reason(run_dir) or f"the run ended as {status!r}",
            where="simulation engine",
            hint=f"The log is {log_path}",
        )


def _submit_and_wait(
    config: RunConfig, federation: dict[str, int | float], home: Path, log_path: Path
) -> None:
    app = stage_app(home / "app" / "mdc-flower")
    run_config = home / "run-config.toml"
    run_config.write_text(tomli_w.dumps(config.to_flower()))
    settings = " ".join(f"{key}={value}" for key, value in federation.items())
    command = [script("flwr"), "run", str(app), CONNECTION, "--stream"]
    command += ["--run-config", str(run_config), "--federation-config", settings]
    with log_path.open("ab") as log:
        subprocess.run(
            command,
            env=environment(home),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )


def _reason(run_dir: Path) -> str:
    """Return the error that the ServerApp left in the summary, if it came so far."""
    try:
        return str(json.loads((run_dir / SUMMARY).read_text()).get("error", ""))
    except (OSError, ValueError):
        return ""
