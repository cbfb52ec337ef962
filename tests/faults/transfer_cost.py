"""Measure how long a large model takes to reach sites behind slow links, and to come back.

The method is that of `simulations.benchmarks.deployment_cost`. Run it as
``python -m tests.faults.transfer_cost``.
"""

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import typer

from mdc_flower.engines.flower_processes import superlink
from mdc_flower.engines.guardian import guarded
from simulations.benchmarks.deployment_cost import NUM_SITES, round_seconds, supernode
from tests.faults.wide_area import Link, has_netem, wide_area


def bench_transfer(megabytes: float, rounds: int, link: Link) -> str:
    """Measure an exchange over a wide-area network; return a sentence with the result."""
    with tempfile.TemporaryDirectory(prefix="mdc-bench-") as name, ExitStack() as stack:
        home = Path(name)
        stack.enter_context(guarded(home))
        server = stack.enter_context(superlink(home, home / "log.txt", listen="0.0.0.0"))
        names = [f"site-{number}" for number in range(NUM_SITES)]
        area = stack.enter_context(wide_area(names, link, server.port))
        for number, site in enumerate(area.values()):
            address = f"{site.host}:{site.port}"
            stack.enter_context(supernode(home, number, address, site.prefix))
        small, large = (
            round_seconds(home, "co-learning", size, rounds, number)
            for number, size in enumerate((1.0, megabytes))
        )
    line_s = 2 * megabytes * 8e6 / link.rate_bps
    fixed, took = statistics.median(small), statistics.median(large)
    lost = f"netem, {100 * link.loss:g}% loss" if has_netem() else "a TCP proxy, no loss"
    return (
        f"a {megabytes:g} MB model to {NUM_SITES} sites and back, each behind "
        f"{link.rate_bps / 1e6:g} Mbit/s, {1000 * link.round_trip_s:g} ms round trip ({lost}), "
        f"{rounds} counted rounds: {took:.1f} s (from {min(large):.1f} to {max(large):.1f}), of "
        f"1 MB {fixed:.1f} s; at line rate the two transfers take {line_s:.1f} s, so that "
        f"{100 * line_s / (took - fixed):.0f}% of the line rate is used beyond what is fixed"
    )


def main(
    rounds: int = 3,
    megabytes: float = 45.0,
    rate_mbps: float = 100.0,
    round_trip_ms: float = 50.0,
    loss_percent: float = 0.1,
) -> None:
    """Print how long the transfer of a large model takes."""
    link = Link(1e6 * rate_mbps, round_trip_ms / 1000, loss_percent / 100)
    typer.echo(bench_transfer(megabytes, rounds, link))


if __name__ == "__main__":
    typer.run(main)
