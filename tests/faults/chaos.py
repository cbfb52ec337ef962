"""Kill the coordinator at random moments; whatever it was doing, the run ends with the same bits.

``make chaos``, or ``python -m tests.faults.chaos --kills 25 --seed 1``. A run is killed, resumed
and killed again until it ends; then the next one begins. The seed decides the moments.
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
    """Return a config of digits that takes seconds: a CNN, augmentation, ILE."""
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
    """Kill so many times; return how many runs came to their end, all with the same bits."""
    # The first one also waits for the server that children are forked from.
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
            raise SystemExit(f"another model: {config.output_dir}")
        ended += 1
    return ended


def _is_over(config: RunConfig, moment_s: float) -> bool:
    """Go on with a run and kill it at a moment; return whether it ended before that."""
    with child(resumed(config), num_sites=NUM_SITES) as process:
        process.join(moment_s)
        if process.exitcode not in (0, None):
            raise SystemExit(f"the run failed by itself: {config.output_dir}")
        return process.exitcode == 0


def _rounds(config: RunConfig) -> int:
    run_dir = Path(config.output_dir)
    return len(read_history(run_dir)) if (run_dir / HISTORY).is_file() else 0


def main(
    kills: Annotated[int, typer.Option(min=1, help="How often to kill.")] = 25,
    seed: Annotated[int, typer.Option(help="Decides the moments.")] = 1,
) -> None:
    """Kill the coordinator at random moments."""
    with tempfile.TemporaryDirectory(prefix="mdc-chaos-") as name:
        os.environ.setdefault("MDC_CACHE_DIR", str(Path(name, "cache")))
        ended = chaos(Path(name), kills, seed)
    print(f"{kills} kills over {ended} runs: every one ended with the same model")


if __name__ == "__main__":
    typer.run(main)
