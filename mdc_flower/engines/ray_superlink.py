"""Run a simulation on Ray: start a private SuperLink, call `flwr run`, and clean up."""

from pathlib import Path

from mdc_flower.config import RunConfig
from mdc_flower.engines.flower_processes import superlink
from mdc_flower.engines.guardian import temporary_home
from mdc_flower.engines.ray_watch import RayWatch
from mdc_flower.engines.submission import run_through


def run_on_ray(
    config: RunConfig, num_sites: int, num_cpus: int, gpus_per_site: float = 0.0
) -> None:
    """Run a whole simulation on Flower's simulation engine, and return when it has finished.

    The output of the SuperLink and the app goes to ``engine.log`` in the run directory.

    Parameters
    ----------
    config
        The run config; ``output-dir`` must be absolute.
    num_sites
        Number of simulated sites.
    num_cpus
        Number of cores for Ray; ``num_cpus // threads-per-site`` sites train at the same time.
    gpus_per_site
        Share of a GPU for each site; 0 for none.

    Raises
    ------
    EngineError
        If a process died, or the run failed in a way that a restart may fix.
    QuorumError
        If too few sites returned an update.
    RunError
        If the SuperLink does not start, or the run failed for another reason.
    """
    run_dir = Path(config.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    log_path = run_dir / "engine.log"
    federation = {
        "num-supernodes": num_sites,
        "client-resources-num-cpus": config.threads_per_site,
        "client-resources-num-gpus": gpus_per_site,
        "init-args-num-cpus": max(num_cpus, config.threads_per_site),
    }
    settings = " ".join(f"{key}={value}" for key, value in federation.items())
    with (
        temporary_home() as home,
        # Ray writes its files into this home, so they are removed with the run.
        superlink(home, log_path, ["--simulation"], variables={"RAY_TMPDIR": str(home)}) as link,
    ):
        run_through(
            config,
            home,
            log_path,
            lambda: link.process.poll() is None,
            ["--federation-config", settings],
            RayWatch(log_path).failure,
        )
