"""What a round costs between real processes: fixed seconds, and the time a large model takes.

Measured with SuperNodes that send the model back as it came, see `simulations.echo_app`. Run as
``python -m simulations.deployment_cost``; the second part needs root.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

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
from simulations.coordinator_cost import stage_echo
from simulations.echo_app import ROUND_STARTS
from simulations.wide_area import Link, wide_area
from strategies.errors import EngineError
from strategies.journal.run_directory import read_history

NUM_SITES = 3
KINDS = ("co-learning", "fedavg")

Prefixes = Sequence[Sequence[str]]


@contextmanager
def federation(home: Path, listen: str, prefixes: Prefixes) -> Iterator[None]:
    """Run a SuperLink here, and a SuperNode behind each prefix, during the block."""
    log = home / "log.txt"
    with ExitStack() as stack:
        link = stack.enter_context(superlink(home, log, listen=listen))
        for number, prefix in enumerate(prefixes):
            node = f"partition-id={number} num-partitions={len(prefixes)}"
            command = [*prefix, script("flower-supernode"), "--insecure"]
            command += ["--superlink", f"{listen}:{link.port}", "--port", str(free_port())]
            command += ["--node-config", node]
            stack.enter_context(running(command, environment(home), home, log))
        yield


def round_seconds(home: Path, kind: str, megabytes: float, rounds: int, number: int) -> list[float]:
    """Run rounds through the federation that FLWR_HOME leads to; return each one's seconds.

    The first round is left out: in it the app is installed at the sites. So is the last: the
    sites evaluate its model once more.
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
    """Return a sentence with the seconds of a round without training, ours and stock FedAvg's."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="mdc-bench-") as name:
        home = Path(name)
        with federation(home, LOOPBACK, [()] * NUM_SITES):
            for number in range(repeats):
                for place, kind in enumerate(KINDS):
                    run = len(KINDS) * number + place
                    seconds[kind] += round_seconds(home, kind, 1.0, rounds, run)
    parts = [
        f"{kind} {statistics.median(times):.1f} s (from {min(times):.1f} to {max(times):.1f})"
        for kind, times in seconds.items()
    ]
    return (
        f"a round of training and evaluation without any work, {NUM_SITES} SuperNodes, 1 MB model, "
        f"{repeats} interleaved runs of {rounds} counted rounds: {', '.join(parts)}"
    )


def bench_transfer(megabytes: float, rounds: int, link: Link) -> str:
    """Return a sentence with the time of an exchange over a wide-area network."""
    with wide_area([f"site-{n}" for n in range(NUM_SITES)], link) as area:
        plan = {
            "listen": area.coordinator.address,
            "prefixes": [party.command() for party in area.sites.values()],
            "megabytes": [1.0, megabytes],
            "rounds": rounds,
        }
        # A SuperLink, and all that talks to it, can only be reached from inside.
        inner = [sys.executable, "-m", "simulations.deployment_cost", "--inside", json.dumps(plan)]
        done = subprocess.run(
            area.coordinator.command(*inner), capture_output=True, text=True, check=False
        )
        control = area.congestion_control
    if done.returncode:
        raise EngineError("the measurement failed", hint=(done.stdout + done.stderr)[-2000:])
    small, large = json.loads(done.stdout.splitlines()[-1])
    line_s = 2 * megabytes * 8e6 / link.rate_bps
    fixed, took = statistics.median(small), statistics.median(large)
    return (
        f"a {megabytes:g} MB model to {NUM_SITES} sites and back, each behind "
        f"{link.rate_bps / 1e6:g} Mbit/s, {1000 * link.round_trip_s:g} ms round trip, "
        f"{100 * link.loss:g}% loss, TCP {control}, {rounds} counted rounds: {took:.1f} s "
        f"(from {min(large):.1f} to {max(large):.1f}), of 1 MB {fixed:.1f} s; at line rate the "
        f"two transfers take {line_s:.1f} s, so that {100 * line_s / (took - fixed):.0f}% of the "
        "line rate is used beyond what is fixed"
    )


def _inside(plan: str) -> None:
    told = json.loads(plan)
    with tempfile.TemporaryDirectory(prefix="mdc-bench-") as name:
        home = Path(name)
        with federation(home, told["listen"], told["prefixes"]):
            seconds = [
                round_seconds(home, "co-learning", megabytes, told["rounds"], number)
                for number, megabytes in enumerate(told["megabytes"])
            ]
    typer.echo(json.dumps(seconds))


def main(
    rounds: int = 5,
    repeats: int = 2,
    megabytes: float = 45.0,
    rate_mbps: float = 100.0,
    round_trip_ms: float = 50.0,
    loss_percent: float = 0.1,
    transfer: Annotated[bool, typer.Option(help="Measure over a wide-area network too.")] = True,
    inside: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print what a round costs between real processes."""
    if inside:
        _inside(inside)
        return
    typer.echo(bench_fixed(rounds, repeats))
    if transfer:
        link = Link(1e6 * rate_mbps, round_trip_ms / 1000, loss_percent / 100)
        typer.echo(bench_transfer(megabytes, rounds, link))


if __name__ == "__main__":
    typer.run(main)
