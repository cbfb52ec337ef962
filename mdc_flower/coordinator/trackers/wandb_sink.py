"""A run of Weights & Biases; ``WANDB_MODE=offline`` writes files into the run directory only."""

import os
import uuid
from collections.abc import Mapping

from mdc_flower.coordinator.trackers.tracker import (
    CLOSE_S,
    ROUNDS,
    WORK,
    Start,
    remembered,
    shown,
)

RUN_ID = "wandb-run-id"
PROJECT = "mdc-flower"
"""Project, unless ``WANDB_PROJECT`` names another."""

STEP = {ROUNDS: "round", WORK: "local-work"}
"""Name of the number that is the step of an axis."""


class WandbSink:
    """Writes the numbers of one run; the run config is its config."""

    def __init__(self, start: Start) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=remembered(start.run_dir / RUN_ID, lambda: uuid.uuid4().hex[:16]),
            resume="allow",
            name=start.run_dir.name,
            dir=str(start.run_dir),
            config=shown(start.config),
            # Send the numbers only, and do not wait for ever for a server that is gone.
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                finish_timeout=CLOSE_S / 2,
            ),
        )
        for axis, pattern in ((ROUNDS, "*"), (WORK, "learning-rate/*")):
            self._run.define_metric(STEP[axis])
            self._run.define_metric(pattern, step_metric=STEP[axis])

    def write(self, axis: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers."""
        self._run.log({STEP[axis]: step, **scalars})

    def flush(self) -> None:
        """Do nothing: the library sends the numbers in the background."""

    def close(self, has_finished: bool) -> None:
        """End the run; a resumed run continues it."""
        import wandb

        self._run.finish(exit_code=0 if has_finished else 1)
        wandb.teardown()  # ends the library's process
