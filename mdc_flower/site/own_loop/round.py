"""A round at the user's side: its plan, its model, and what the script sends back."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from mdc_flower.site.own_loop import ranks
from mdc_flower.site.own_loop.protocol import (
    MODEL,
    PLAN,
    PROGRESS,
    PROTOCOL,
    RESULT,
    SEEDS,
    TRAINED,
)
from strategies.common.errors import ConfigError, MdcError
from strategies.common.files import write_atomically
from strategies.common.seeds import derive_seed
from strategies.method.round_plan import RoundPlan

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from mdc_flower.site.own_loop.learning_rate import RoundLR

Metrics = Mapping[str, float | list[float]]
"""Values by name, without ``train-`` or ``validation-``; sums for a metric that is no mean."""


class Round:
    """One round: a plan, a model to load, and the files of the answer.

    Parameters
    ----------
    folder : Path
        The round's folder.

    Attributes
    ----------
    kind : str
        ``train`` or ``evaluate``. What follows is 0 in an evaluation, except ``deadline``.
    number : int
        The round's number, from 1.
    local_steps : int
        Length of the training in optimizer steps; 0 in a run that counts epochs.
    steps_before : int
        Optimizer steps of the rounds before, where a stream of examples continues; 0 in a run that
        counts epochs.
    deadline : float
        Unix time in seconds at which the site ends this script if there is no model; infinite if
        there is no deadline.
    is_sent : bool
        Whether the answer has been sent.
    rates : list of float or None
        The learning rates that a trainer's callback has set; None without a callback.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The folder need not exist on the machines of the other ranks.
        text = (folder / PLAN).read_text("utf-8") if ranks.rank() == 0 else ""
        fields: dict[str, Any] = json.loads(ranks.from_rank_0(text))
        if fields.pop("protocol") != PROTOCOL:
            raise ConfigError(
                "the site uses another protocol",
                where=str(folder / PLAN),
                hint="Install the same version of mdc-flower at the site and in this environment",
            )
        self.kind = str(fields.pop("kind"))
        self.site = str(fields.pop("site"))
        until, _ = fields.pop("deadline"), fields.pop("deadline_s")
        self.deadline = math.inf if until is None else float(until)
        self.plan = RoundPlan.model_validate(fields) if fields else None
        self.number = self.plan.round if self.plan else 0
        self.local_steps = self.plan.local_steps if self.plan else 0
        self.steps_before = self.plan.steps_before if self.plan else 0
        self.is_sent = False
        self.rates: list[float] | None = None
        self._schedule: RoundLR | None = None

    @property
    def local_epochs(self) -> int:
        """Return the length of the training in epochs; 0 in a run that counts steps.

        Raises
        ------
        ConfigError
            If the round does not have whole epochs, as with growing rounds.
        """
        if self.plan and self.plan.local_parts:
            raise ConfigError(
                "the round does not have whole epochs",
                where=f"round {self.number}",
                got=f"{self.plan.local_parts} thousandths of an epoch",
                hint="Train for round.steps(n) optimizer steps, with n steps in an epoch",
            )
        return self.plan.local_epochs if self.plan else 0

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.time()

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays of the global model by name; only rank 0 is sure to have them."""
        return dict(load_file(self.folder / MODEL))

    def load(self, model: "nn.Module") -> None:
        """Overwrite a model's parameters and buffers by the global model, at every rank.

        Raises
        ------
        ModelError
            If names, shapes or dtypes differ; the model is then unchanged. The error names the
            first mismatch. Weights that layers share have the first of their names.
        """
        from mdc_flower.training.arrays import load_arrays

        model = ranks.whole(model)
        if ranks.rank() == 0:
            load_arrays(model, self.arrays)
        ranks.spread(model)

    def steps(self, per_epoch: int) -> int:
        """Return the optimizer steps of the round, for so many steps per epoch."""
        return self.plan.steps(per_epoch) if self.plan else 0

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, if the round has ``steps`` steps.

        Raises
        ------
        MdcError
            If the round has no such step.
        """
        return self._plan().lr_of_step(step, steps)

    def lr_scheduler(self, optimizer: "Optimizer", steps: int) -> "RoundLR":
        """Return a scheduler that sets the plan's rate for each of the round's optimizer steps.

        A parameter group with a key ``lr_scale`` gets the rate times this number.
        """
        from mdc_flower.site.own_loop.learning_rate import RoundLR

        self._schedule = RoundLR(optimizer, self._plan(), steps)
        return self._schedule

    def seed(self, name: str) -> int:
        """Return a seed below 2**31 for a purpose; it also depends on run, round and site."""
        return derive_seed(self._plan().seed, name) % SEEDS

    def progress(self, **values: float | str) -> None:
        """Show values to the site's operator; they do not leave the site."""
        if ranks.rank() == 0:
            with (self.folder / PROGRESS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def send(
        self,
        model: "nn.Module | Mapping[str, NDArray[np.generic]]",
        *,
        num_examples: int,
        num_steps: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Send the trained model; every rank calls it, and rank 0 sends.

        Parameters
        ----------
        model
            A model, or its arrays by name.
        num_examples
            Training examples of the site, the same in every round; the weight of the model.
        num_steps
            Optimizer steps; by default those of `lr_scheduler`.
        metrics
            Metrics of the training: ``loss``, and others of the run's job.

        Raises
        ------
        MdcError
            If the scheduler of this round was not used to its end, or the trainer took no step.
        ModelError
            If the model does not have the arrays of the global model.
        """
        schedule = self._schedule
        if schedule is not None and not schedule.is_finished:
            raise MdcError(
                "the round was not trained to its end",
                where=f"round {self.number}",
                got=f"{schedule.last_epoch} steps of the scheduler",
                expected=f"{schedule.steps} steps, as announced",
                hint="Call the scheduler's step() after every step of the optimizer",
            )
        if self.rates == []:
            raise MdcError("the trainer has taken no optimizer step", where=f"round {self.number}")
        if ranks.rank() == 0:
            save_file(self._arrays_of(model), self.folder / f".{TRAINED}")
            (self.folder / f".{TRAINED}").replace(self.folder / TRAINED)
            steps = schedule.steps if num_steps is None and schedule else num_steps
            self.report(num_examples, metrics or {}, steps)
        self.is_sent = True

    def report(self, num_examples: int, metrics: Metrics, num_steps: int | None = None) -> None:
        """Write the result, which ends the round."""
        if ranks.rank() != 0:
            return
        fields: dict[str, Any] = {
            "num_examples": int(num_examples),
            "metrics": {name: np.asarray(value, float).tolist() for name, value in metrics.items()},
        }
        if num_steps is not None:
            fields["num_steps"] = int(num_steps)
        write_atomically(self.folder / RESULT, json.dumps(fields).encode())

    def _arrays_of(self, model: Any) -> dict[str, NDArray[np.generic]]:
        if isinstance(model, Mapping):
            return {name: np.asarray(array, order="C") for name, array in model.items()}
        from mdc_flower.training.arrays import model_arrays

        return model_arrays(ranks.whole(model))

    def _plan(self) -> RoundPlan:
        if self.plan is None:
            raise MdcError("an evaluation has no plan", where=str(self.folder.name))
        return self.plan
