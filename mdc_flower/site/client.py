"""`SiteClient`: one site's side of a round, as a Flower `NumPyClient`."""

import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import ConfigRecord
from flwr.client import NumPyClient
from numpy.typing import NDArray
from torch import nn

from mdc_flower.models.exchange import (
    ALL,
    base_digests,
    check_unchanged,
    exchanged_names,
    kept_names,
)
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.batch_norm import buffers_of, recalibrate, statistics_of
from mdc_flower.training.job import Job, sent_of
from mdc_flower.training.loop import Progress, TrainSettings, evaluate, train
from mdc_flower.training.runtime import ONE, Runtime
from mdc_flower.training.stores import Store
from strategies.aggregation.averaging import Arrays
from strategies.common.errors import ConfigError
from strategies.exchange.messages import DEADLINE
from strategies.exchange.metrics import LOSS, TRAIN, is_finite
from strategies.method.round_plan import RoundPlan

NDArrays = list[NDArray[Any]]
Scalar = bool | bytes | float | int | str
"""The values that a `NumPyClient` receives and returns beside arrays."""


class OwnArrays(Protocol):
    """Carries the arrays that stay at the site from one round to the next."""

    def load(self, model: nn.Module, names: Sequence[str]) -> None:
        """Overwrite these arrays of a model with those that the site has, if it has any."""
        ...

    def save(self, arrays: Arrays) -> None:
        """Save them after a round."""
        ...


class SiteClient(NumPyClient):
    """Trains and evaluates on the data of one site.

    The client itself keeps no state between messages, so that an offline or restarted site computes
    exactly what it would have computed otherwise. Each use gets a new model, because a used
    model may have changed in ways that its arrays do not show. On failure the client raises, and
    the ClientApp turns the exception into an error reply.

    Parameters
    ----------
    site : str
        The site's name; its random streams depend on it.
    job : Job
        Model, data, loss and metrics; the client overwrites the weights of a new model.
    settings, device
        How to train, and on which device.
    on_progress
        Called with the progress of local training; None for no reports.
    seed
        The run's seed, for the order of the examples when statistics are computed.
    local_statistics
        Whether BatchNorm's running statistics stay at the site. Replies then contain the received
        statistics, and a model is evaluated with the site's own, which are recomputed from its
        training examples.
    epochs
        Saves the state of training after each epoch; None to save nothing.
    carried
        Carries the optimizer's state from one round to the next; None for a new optimizer in each
        round.
    runtime
        The processes that train together. All must call each method alike; only the first one gets
        parameters, epochs and what is kept from round to round, and only its results are meant to
        be used.
    exchange
        The arrays that are exchanged; see `exchanged_names`. All others stay as the job builds
        them from the seed.
    keep
        The arrays that the site keeps as its own; see `kept_names`.
    own_arrays
        Carries these arrays from one round to the next; None to begin with those of a new model.
    """

    def __init__(
        self,
        site: str,
        job: Job,
        settings: TrainSettings,
        device: torch.device,
        on_progress: Callable[[Progress], None] | None = None,
        seed: int = 0,
        local_statistics: bool = False,
        epochs: Store | None = None,
        carried: Store | None = None,
        runtime: Runtime = ONE,
        exchange: str = ALL,
        keep: str = "",
        own_arrays: OwnArrays | None = None,
    ) -> None:
        self.site = site
        self.job = job
        self.settings = settings
        self.device = device
        self.on_progress = on_progress
        self.seed = seed
        self.local_statistics = local_statistics
        self.epochs = epochs
        self.carried = carried
        self.runtime = runtime
        self.exchange = exchange
        self.keep = keep
        self.own_arrays = own_arrays
        self._unused: nn.Module | None = None

    @cached_property
    def names(self) -> list[str]:
        """The names of the exchanged arrays, in the model's order."""
        return exchanged_names(self._next_model(), self.exchange, self.keep)

    @cached_property
    def kept(self) -> list[str]:
        """The names of the arrays that stay at the site, in the model's order."""
        return kept_names(self._next_model(), self.keep) if self.keep else []

    @cached_property
    def base(self) -> dict[str, str]:
        """The digests of the arrays that are neither exchanged nor kept; see `base_digests`."""
        if self.exchange == ALL:
            return {}
        return base_digests(self._next_model(), [*self.names, *self.kept])

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Return the initial model's arrays, in the order of `names`."""
        return list(model_arrays(self.job.model(), self.names).values())

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Any]]:
        """Train from ``parameters`` by the plan in ``config``.

        Parameters
        ----------
        parameters
            The global model's arrays in the order of `names`.
        config
            The fields of a `RoundPlan`, and its id. Optionally ``deadline-s``: the seconds
            until the coordinator stops waiting.

        Returns
        -------
        tuple
            The local model's arrays, the number of training examples, and the training metrics
            that may leave the site; see `strategies.exchange.metrics`.

        Raises
        ------
        PlanError
            If the plan is not valid.
        DeadlineError
            If training does not finish before the deadline.
        ModelError
            If the arrays do not fit the model, or if training changes an array that is not
            exchanged; names the first one.
        StateMissingError
            If ``carried`` or ``own_arrays`` have lost the state with which the round begins.
        """
        fields = {**config}
        deadline_s = float(fields.pop(DEADLINE, math.inf))
        stop_at = time.monotonic() + deadline_s
        plan = RoundPlan.from_config_record(ConfigRecord({**fields}))
        base = self.base
        model = self._loaded(parameters)
        result = train(
            model,
            self.job,
            plan,
            self.settings,
            self.device,
            self.site,
            on_progress=self.on_progress,
            stop_at=stop_at,
            epochs=self.epochs,
            carried=self.carried,
            runtime=self.runtime,
        )
        sent = sent_of([metric for metric in self.job.metrics if metric.in_training], result.sums)
        metrics = {
            "num-steps": result.num_steps,
            # A training metric that is not finite is no reason to reject the update; a loss is.
            **{TRAIN + n: v for n, v in sent.items() if n == LOSS.name or is_finite(v)},
            "train-seconds": result.seconds,
        }
        kept = buffers_of(model) if self.local_statistics else frozenset()
        model.zero_grad(set_to_none=True)  # memory for the arrays to send
        trained = self.runtime.gather(model, [*self.names, *self.kept])
        if base:
            check_unchanged(self.runtime.digests(model, list(base)), base)
        if self.own_arrays is not None:
            self.own_arrays.save({name: trained[name] for name in self.kept})
        arrays = [
            received if name in kept else trained[name]
            for name, received in zip(self.names, parameters, strict=bool(trained))
        ]
        return arrays, result.num_examples, metrics

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Any]]:
        """Evaluate ``parameters`` on the site's validation examples.

        Returns
        -------
        tuple
            Mean loss, the number of validation examples, and the metrics that may leave the site.

        Raises
        ------
        ModelError
            If the arrays do not fit the model; names the first mismatch.
        StateMissingError
            If ``own_arrays`` has lost the arrays that stay at the site.
        """
        model = self._loaded(parameters)
        if self.local_statistics:
            self._recalibrate(model)
        format_ = self.settings.autocast_dtype
        result = evaluate(model, self.job, "validation", self.device, format_, self.runtime)
        return result.loss, result.num_examples, sent_of(self.job.metrics, result.sums)

    def statistics(
        self, parameters: NDArrays, deadline_s: float = math.inf
    ) -> tuple[dict[str, NDArray[np.generic]], int]:
        """Return a model's BatchNorm statistics on the site's training examples.

        Returns
        -------
        tuple
            Running means and variances by name, and the number of training examples.

        Raises
        ------
        DeadlineError
            If they are not computed within ``deadline_s`` seconds.
        ModelError
            If the arrays do not fit the model; names the first mismatch.
        ConfigError
            If the training examples are a stream.
        """
        stop_at = time.monotonic() + deadline_s
        num_examples = self.job.size("train")
        if num_examples is None:
            raise ConfigError(
                "BatchNorm statistics cannot be recomputed on a stream",
                where="batch-norm",
                got="'recalibrate'",
                expected="'average' or 'local'",
            )
        model = self._loaded(parameters)
        names = [name for pair in statistics_of(model).items() for name in pair]
        self._recalibrate(model, stop_at)
        return model_arrays(model, names), num_examples

    def _next_model(self) -> nn.Module:
        """Return the new model that will be used next; until then it may only be read."""
        if self._unused is None:
            self._unused = self.job.model()
        return self._unused

    def _loaded(self, parameters: NDArrays) -> nn.Module:
        model, self._unused = self._next_model(), None
        self.runtime.from_first(lambda: self._load_own(model))
        is_whole = self.exchange == ALL and not self.keep
        self.runtime.load(model, parameters, None if is_whole else self.names)
        return model

    def _load_own(self, model: nn.Module) -> None:
        if self.own_arrays is not None:
            self.own_arrays.load(model, self.kept)

    def _recalibrate(self, model: nn.Module, stop_at: float = math.inf) -> None:
        self.runtime.place(model, self.device)
        recalibrate(
            model,
            self.job,
            self.device,
            self.settings.autocast_dtype,
            self.seed,
            self.site,
            stop_at,
        )
