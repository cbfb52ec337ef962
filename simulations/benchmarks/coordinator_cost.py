"""Benchmarks of the coordinator: its memory, and the cost of journal and checkpoints.

The sites send the model back unchanged; see `simulations.benchmarks.echo_app`.
"""

import shutil
import statistics
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mdc_flower.config import read_run_config
from mdc_flower.engines.app_bundle import stage_app
from mdc_flower.engines.flower_processes import (
    COMPLETED,
    environment,
    last_run_status,
    run_command,
    running,
    superlink,
)
from mdc_flower.engines.guardian import guarded
from mdc_flower.engines.in_process import run_in_process
from simulations.benchmarks import echo_app
from strategies.common.errors import EngineError
from strategies.storage.lock import read_owner

TRAINING_S = 20.0
"""Seconds of local training per round, to which the cost of journal and checkpoints is compared."""

SITE_S = 2.0
"""Seconds that a site waits before its reply in the memory benchmark."""

POLL_S = 0.02


def bench_safety(megabytes: float, num_sites: int, rounds: int, repeats: int) -> str:
    """Return a sentence with the time that journal and checkpoints add to a round."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats):
        for stored in (False, True):
            times[stored].append(_round_seconds(megabytes, num_sites, rounds, stored))
    added = [safe - bare for bare, safe in zip(times[False], times[True], strict=True)]
    bare_s, added_s = statistics.median(times[False]), statistics.median(added)
    return (
        f"journal and checkpoints, {num_sites} sites, {megabytes:g} MB model, {repeats} "
        f"interleaved repeats of {rounds} rounds without training: {bare_s:.2f} s per round "
        f"without them; they add {added_s:.2f} s (from {min(added):.2f} to {max(added):.2f}), or "
        f"{100 * added_s / (TRAINING_S + bare_s):.1f}% of a round with {TRAINING_S:g} s of training"
    )


def _round_seconds(megabytes: float, num_sites: int, rounds: int, stored: bool) -> float:
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        folder = Path(name)

        def main(grid: Grid, context: Context) -> None:
            arrays = echo_app.arrays_of(megabytes)
            started = time.perf_counter()
            echo_app.co_learning(grid, folder / "run", arrays, rounds, stored)
            seconds.append(time.perf_counter() - started)

        server = ServerApp()
        server.main()(main)
        config = read_run_config({"output-dir": str(folder / "run")})
        run_in_process(config, num_sites, server, echo_app.site)
    return seconds[0] / rounds


@dataclass(frozen=True)
class Peak:
    """Peak resident memory of a process in MB: its own, and the part shared with Ray's store."""

    own: float = 0.0
    shared: float = 0.0

    def updated(self, own: float, shared: float) -> "Peak":
        """Return the peaks after another measurement."""
        return Peak(max(self.own, own), max(self.shared, shared))


def bench_memory(
    megabytes: float, num_sites: tuple[int, int], num_replies: int, repeats: int, cores: int
) -> list[str]:
    """Return sentences with the coordinator's peak memory on Ray, for ours and for Flower's FedAvg.

    The sites wait `SITE_S` seconds to simulate training: replies that arrive faster than they are
    processed wait in Flower's state, in the same process. All runs have the same number of replies,
    whatever the number of sites: a peak occurs when copies coincide, and more replies make a
    higher peak more likely.
    """
    kinds = ("co-learning", "fedavg")
    peaks: dict[tuple[str, int], list[Peak]] = {}
    for _ in range(repeats):
        for kind in kinds:
            for count in num_sites:
                peak = _peak(kind, megabytes, count, num_replies // count, cores)
                peaks.setdefault((kind, count), []).append(peak)
    return [_memory_sentence(kind, megabytes, num_sites, num_replies, peaks) for kind in kinds]


def _memory_sentence(
    kind: str,
    megabytes: float,
    num_sites: tuple[int, int],
    num_replies: int,
    peaks: Mapping[tuple[str, int], Sequence[Peak]],
) -> str:
    few, many = (peaks[kind, count] for count in num_sites)
    grown = [(after.own - before.own) / megabytes for before, after in zip(few, many, strict=True)]
    span = f"from {min(grown):+.2f} to {max(grown):+.2f}"
    return (
        f"peak resident memory of the coordinator process, {kind}, {megabytes:g} MB model, "
        f"{num_replies} replies on Ray, medians of {len(few)} interleaved repeats: "
        f"{statistics.median(peak.own for peak in few):.0f} MB with {num_sites[0]} sites, "
        f"{statistics.median(peak.own for peak in many):.0f} MB with {num_sites[1]}, difference "
        f"{statistics.median(grown):+.2f} models ({span}); and "
        f"{max(peak.shared for peak in (*few, *many)):.0f} MB of Ray's object store"
    )


def _peak(kind: str, megabytes: float, num_sites: int, rounds: int, cores: int) -> Peak:
    with tempfile.TemporaryDirectory(prefix="mdc-bench-") as name:
        home = Path(name)
        keys = {
            "coordinator": kind,
            "megabytes": float(megabytes),
            "num-rounds": rounds,
            "training-seconds": SITE_S,
            "output-dir": str(home / "run"),
        }
        app = stage_echo(home / "app" / "mdc-flower", keys)
        settings = f"num-supernodes={num_sites} client-resources-num-cpus=1 init-args-num-cpus="
        command = run_command(app, "--federation-config", f"{settings}{cores}")
        log = home / "log.txt"
        with (
            guarded(home),
            superlink(home, log, ["--simulation"]),
            running(command, environment(home), home, log) as submitted,
        ):
            peak = _watch(submitted, home / "run")
            status = last_run_status(home)
        if status != COMPLETED:
            raise EngineError(f"the run ended as {status!r}", hint=log.read_text()[-2000:])
    return peak


def stage_echo(target: Path, keys: dict[str, Any]) -> Path:
    """Stage the echo app in a folder, with these keys in its run config."""
    stage_app(target)
    shutil.copy(Path(echo_app.__file__), target / "echo_app.py")
    project = tomllib.loads((target / "pyproject.toml").read_text())
    flower = project["tool"]["flwr"]["app"]
    flower["fab-include"].append("echo_app.py")
    flower["components"] = {"serverapp": "echo_app:app", "clientapp": "echo_app:site"}
    flower["config"] = keys
    (target / "pyproject.toml").write_text(tomli_w.dumps(project))
    return target


def _watch(submitted: "subprocess.Popen[bytes]", run_dir: Path) -> Peak:
    """Poll the coordinator's memory until the run has ended."""
    peak = Peak()
    while submitted.poll() is None:
        pid = read_owner(run_dir).get("pid")
        if pid is not None:
            peak = peak.updated(*_megabytes_of(pid))
        time.sleep(POLL_S)
    return peak


def _megabytes_of(pid: int) -> tuple[float, float]:
    """Return the own and the shared resident memory of a process, in MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # the process has ended
        return 0.0, 0.0
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if "Rss" in line}
    own, shared = kilobytes["RssAnon"] + kilobytes["RssFile"], kilobytes["RssShmem"]
    return own * 1024 / 1e6, shared * 1024 / 1e6
