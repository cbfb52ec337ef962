"""Kill the coordinator at random moments, and check that the final model keeps the same bits.

Run it as ``make chaos`` or ``python -m tests.faults.chaos --kills 25 --seed 1``. Each run is killed
and resumed until it finishes; then the next one starts. The seed decides the moments.
"""

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from mdc_flower.config import RunConfig, read_run_config
from strategies.storage.run_directory import HISTORY, read_history
from tests.faults.runs import child, resumed, run_child, sha256

NUM_SITES = 5


def config_in(run_dir: Path) -> RunConfig:
    """Return a config for digits that takes seconds, with a CNN, augmentation and ILE."""
    return read_run_config(
        {
            "num-sites": NUM_SITES,
            "max-train-examples": 500,
            "batch-size": 16,
            "augment": "crop",
            "local-epochs": 1,
            "ile-epsilon": 1.0,
            "ile-max-epochs": 3,
            "epoch-budget": 20,
            "output-dir": str(run_dir),
        }
    )


def chaos(folder: Path, kills: int, seed: int) -> int:
    """Kill the coordinator ``kills`` times; return the number of runs, all with the same bits."""
    # The first run also waits for the fork server to start.
    assert run_child(config_in(folder / "warm-up"), num_sites=NUM_SITES) == 0
    started = time.monotonic()
    assert run_child(config_in(folder / "undisturbed"), num_sites=NUM_SITES) == 0
    longest_s = time.monotonic() - started
    expected = sha256(folder / "undisturbed")
    print(f"seed {seed}; undisturbed: {longest_s:.1f} s, sha256 {expected}", flush=True)
    moments = random.Random(seed)
    ended, killed = 0, 0
    while killed < kills:
        config = config_in(folder / f"run-{ended}")
        while killed < kills:
            moment_s = moments.uniform(0.0, longest_s)
            if _is_over(config, moment_s):
                break
            killed += 1
            print(f"kill {killed}: after {moment_s:.2f} s, {_rounds(config)} rounds", flush=True)
        else:
            assert run_child(resumed(config), num_sites=NUM_SITES) == 0
        found = sha256(Path(config.output_dir))
        print(f"run {ended + 1} ended: sha256 {found}", flush=True)
        if found != expected:
            raise SystemExit(f"this run ended with a different model: {config.output_dir}")
        ended += 1
    return ended


def _is_over(config: RunConfig, moment_s: float) -> bool:
    """Resume a run and kill it after ``moment_s`` seconds; return whether it ended before."""
    with child(resumed(config), num_sites=NUM_SITES) as process:
        process.join(moment_s)
        if process.exitcode not in (0, None):
            raise SystemExit(f"the run failed without being killed: {config.output_dir}")
        return process.exitcode == 0


def _rounds(config: RunConfig) -> int:
    run_dir = Path(config.output_dir)
    return len(read_history(run_dir)) if (run_dir / HISTORY).is_file() else 0


def main(
    kills: Annotated[int, typer.Option(min=1, help="Number of kills.")] = 25,
    seed: Annotated[int, typer.Option(help="Random seed for the moments of the kills.")] = 1,
) -> None:
    """Kill the coordinator at random moments."""
    with tempfile.TemporaryDirectory(prefix="mdc-chaos-") as name:
        os.environ.setdefault("MDC_CACHE_DIR", str(Path(name, "cache")))
        ended = chaos(Path(name), kills, seed)
    print(f"{kills} kills in {ended} runs: every run ended with the same model")


if __name__ == "__main__":
    typer.run(main)
