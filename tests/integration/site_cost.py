"""Measure the seconds of a round of real sites that train almost nothing.

A federation with TLS and keys runs on this machine, each site with its own SuperNode. Rounds with
the workers of `mdc site start` alternate with rounds in which Flower's process for each message
trains by itself. Run it with ``python -m tests.integration.site_cost``.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tomli_w
import typer

from mdc_flower.deployment.kits.kits import SiteKit, read_site_kit
from mdc_flower.deployment.site import state_folder
from mdc_flower.deployment.site.node_config import node_config
from mdc_flower.engines.flower_processes import free_port, running, script
from mdc_flower.engines.guardian import guarded
from simulations.benchmarks.deployment_cost import spreads
from strategies.storage.run_directory import read_history
from tests.integration.real_sites import RealSites, real_sites

NUM_SITES = 3
KINDS = ("with workers", "without workers")


@contextmanager
def started(sites: RealSites, kind: str) -> Iterator[None]:
    """Run all sites during the block."""
    with ExitStack() as stack:
        for name in sites.names:
            kit = read_site_kit(sites.kit(name))
            home = kit.state / "flwr"
            if kind == KINDS[0]:
                command: Sequence[str] = [script("mdc"), "site", "start", str(kit.folder)]
            else:
                command = _supernode(kit)
                stack.enter_context(guarded(home))
            env = {**sites.environment(), "FLWR_HOME": str(home)}
            stack.enter_context(
                running(command, env, sites.folder, sites.folder / f"{kind} {name}.log")
            )
        yield


def _supernode(kit: SiteKit) -> list[str]:
    """Return the command of a site's SuperNode alone."""
    state_folder.open_state(kit)
    config = kit.state / "bench-config.toml"
    config.write_text(tomli_w.dumps(node_config(kit)))
    return [
        sys.executable, "-m", "mdc_flower.deployment.site.supernode",
        "--superlink", kit.address, "--root-certificates", str(kit.ca),
        "--auth-supernode-private-key", str(kit.key),
        "--node-config", str(config), "--port", str(free_port()),
    ]  # fmt: skip


def round_seconds(sites: RealSites, run_dir: Path, rounds: int) -> list[float]:
    """Run rounds; return the seconds of each but the first and the last."""
    keys = {
        "model": "mlp", "epochs": "fixed", "local-epochs": 1, "epoch-budget": rounds + 2,
        "min-sites": NUM_SITES,
    }  # fmt: skip
    sites.run(run_dir, keys)
    return [line["seconds"] for line in read_history(run_dir)][1:-1]


def bench_sites(rounds: int, repeats: int) -> str:
    """Return a sentence with the seconds per round, with and without workers."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with (
        tempfile.TemporaryDirectory(prefix="mdc-bench-") as folder,
        real_sites(Path(folder), num_sites=NUM_SITES) as sites,
    ):
        sites.start_coordinator()
        for number in range(repeats):
            for kind in KINDS:
                with started(sites, kind):
                    run_dir = sites.folder / f"{kind} run {number}"
                    seconds[kind] += round_seconds(sites, run_dir, rounds)
    return (
        f"rounds of {NUM_SITES} real sites on one machine, a perceptron on a third of the digits "
        f"each, {repeats} interleaved runs of {rounds} counted rounds, per round: "
        f"{spreads(seconds)}"
    )


def main(rounds: int = 5, repeats: int = 2) -> None:
    """Print the seconds of a round of real sites."""
    typer.echo(bench_sites(rounds, repeats))


if __name__ == "__main__":
    typer.run(main)
