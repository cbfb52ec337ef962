"""Benchmark of a round between real processes, without training.

The SuperNodes send the model back unchanged; see `simulations.benchmarks.echo_app`. Run it with
``python -m simulations.benchmarks.deployment_cost``.
"""

import itertools
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import typer

from mdc_flower.engines.flower_processes import (
    COMPLETED,
    LOOPBACK,
    environment,
    free_port,
    last_run_status,
    run_command,
    running,
    script,
    superlink,
)
from mdc_flower.engines.guardian import guarded
from simulations.benchmarks.coordinator_cost import stage_echo
from simulations.benchmarks.echo_app import ROUND_STARTS
from strategies.common.errors import EngineError
from strategies.storage.run_directory import read_history

NUM_SITES = 3
KINDS = ("co-learning", "fedavg")


def supernode(
    home: Path, number: int, address: str, prefix: Sequence[str] = ()
) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    """Run a SuperNode during the block.

    Parameters
    ----------
    home
        FLWR_HOME of the SuperNode; its output is appended to ``log.txt`` in this folder.
    number
        Index of the site, from 0 to `NUM_SITES` - 1.
    address
        Address of the SuperLink.
    prefix
        Words to put before the command.
    """
    command = [*prefix, script("flower-supernode"), "--insecure", "--superlink", address]
    node = f"partition-id={number} num-partitions={NUM_SITES}"
    command += ["--port", str(free_port()), "--node-config", node]
    return running(command, environment(home), home, home / "log.txt")


def round_seconds(home: Path, kind: str, megabytes: float, rounds: int, number: int) -> list[float]:
    """Run rounds in the federation configured in FLWR_HOME; return the seconds of each.

    The first round is left out because the app is installed at the sites in it, and the last
    because the sites evaluate its model once more.
    """
    run_dir = home / f"run-{number}"
    keys = {
        "coordinator": kind,
        "megabytes": float(megabytes),
        "num-rounds": rounds + 2,
        "num-sites": NUM_SITES,
        "evaluate": True,
        "output-dir": str(run_dir),
    }
    app = stage_echo(home / f"app-{number}" / "mdc-flower", keys)
    done = subprocess.run(
        run_command(app),
        env=environment(home), cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if last_run_status(home) != COMPLETED:
        raise EngineError("the run failed", hint=(done.stdout + done.stderr)[-2000:])
    if kind == "fedavg":
        starts = [float(line) for line in (run_dir / ROUND_STARTS).read_text().split()]
        return [after - before for before, after in itertools.pairwise(starts[1:])]
    return [line["seconds"] for line in read_history(run_dir)][1:-1]


def bench_fixed(rounds: int, repeats: int) -> str:
    """Return a sentence with the seconds per round without training, ours and Flower's FedAvg's."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="mdc-bench-") as name, ExitStack() as stack:
        home = Path(name)
        stack.enter_context(guarded(home))
        link = stack.enter_context(superlink(home, home / "log.txt"))
        for number in range(NUM_SITES):
            stack.enter_context(supernode(home, number, f"{LOOPBACK}:{link.port}"))
        for number in range(repeats):
            for place, kind in enumerate(KINDS):
                run = len(KINDS) * number + place
                seconds[kind] += round_seconds(home, kind, 1.0, rounds, run)
    return (
        f"rounds of training and evaluation without any work, {NUM_SITES} SuperNodes, 1 MB model, "
        f"{repeats} interleaved runs of {rounds} counted rounds, per round: {spreads(seconds)}"
    )


def spreads(seconds: Mapping[str, Sequence[float]]) -> str:
    """Return median, lowest and highest seconds of each kind."""
    return ", ".join(
        f"{kind} {statistics.median(times):.1f} s (from {min(times):.1f} to {max(times):.1f})"
        for kind, times in seconds.items()
    )


def main(rounds: int = 5, repeats: int = 2) -> None:
    """Print the seconds of a round between real processes."""
    typer.echo(bench_fixed(rounds, repeats))


if __name__ == "__main__":
    typer.run(main)
