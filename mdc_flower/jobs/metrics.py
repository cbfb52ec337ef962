"""Metrics of jobs: sums of a batch, and what they become over all batches and all sites."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from strategies.common.errors import ConfigError
from strategies.exchange.metrics import Metric, Value, ratio

NOT_NEGATIVE = (0.0, math.inf)
"""The range, per example, of sums such as counts, errors and losses."""


@dataclass(frozen=True)
class JobMetric:
    """A metric with the function that computes its sums.

    Attributes
    ----------
    metric : Metric
        Name, direction, range, and how sums become a value.
    sums : callable
        Takes a batch's outputs and targets; returns a vector of ``metric.size`` numbers, which are
        added over the batches. Called without gradients.
    """

    metric: Metric
    sums: Callable[[Any, Any], Tensor]


def mean_of(
    name: str,
    better: Literal["max", "min"],
    per_example: Callable[[Any, Any], Tensor],
    *,
    unit: str = "",
    low: float = -math.inf,
    high: float = math.inf,
    per_example_range: tuple[float, float] = (-math.inf, math.inf),
    selects: bool = False,
    then: Callable[[float], float] = lambda mean: mean,
) -> JobMetric:
    """Return a metric that is a mean, or a function of a mean such as a root.

    Parameters
    ----------
    name, better, unit, low, high, selects
        See `Metric`.
    per_example
        Takes a batch's outputs and targets; returns one number for each example (or pixel, or
        token), in any shape.
    per_example_range
        The range of the numbers of one example, and of how many there are; see `Metric`.
    then
        Applied to the mean.
    """

    def sums(outputs: Any, targets: Any) -> Tensor:
        values = per_example(outputs, targets).double()
        return torch.stack([values.sum(), values.new_full((), values.numel())])

    def finish(over_all: list[float]) -> float:
        mean = ratio(over_all)
        return mean if math.isnan(mean) else then(mean)

    metric = Metric(
        name, better, finish, name, 2, low, high, per_example_range, unit, selects=selects
    )
    return JobMetric(metric, sums)


def from_torchmetrics(
    name: str,
    better: Literal["max", "min"],
    metric: Any,
    *,
    unit: str = "",
    low: float = -math.inf,
    high: float = math.inf,
    selects: bool = False,
    in_training: bool = False,
    arguments: Callable[[Any, Any], tuple[Any, ...]] = lambda outputs, targets: (outputs, targets),
) -> JobMetric:
    """Return a metric of the library torchmetrics.

    Its states must be sums, so that those of several sites can be added: curves need fixed
    ``thresholds``.

    Parameters
    ----------
    name, better, unit, low, high, selects, in_training
        See `Metric`.
    metric
        A ``torchmetrics.Metric``.
    arguments
        Takes a batch's outputs and targets; returns the arguments of the metric's ``update``.

    Raises
    ------
    ConfigError
        If a state of the metric is not a sum.
    """
    defaults, kinds = metric._defaults, metric._reductions
    for state, default in defaults.items():
        if not isinstance(default, Tensor) or (
            kinds[state] is not torch.sum
            and (getattr(kinds[state], "__name__", "") != "dim_zero_sum")
        ):
            raise ConfigError(
                "the metric cannot be computed from sums",
                where=f"job, metric {name!r}",
                got=f"{type(metric).__name__}, whose state {state!r} is not a sum",
                hint="A curve such as AUROC is one with thresholds=200",
            )
    shapes = {state: default.shape for state, default in defaults.items()}
    size = sum(default.numel() for default in defaults.values())

    # Each call has a copy of its own: a coordinator evaluates in one thread, and judges in another.
    def sums(outputs: Any, targets: Any) -> Tensor:
        own = fresh().to(_device_of(outputs))
        own.update(*arguments(outputs, targets))
        return torch.cat([getattr(own, state).double().flatten() for state in shapes])

    def fresh() -> Any:
        own = copy.deepcopy(metric)
        own.reset()
        return own

    def finish(over_all: list[float]) -> Value:
        own = fresh()
        rest = torch.tensor(over_all, dtype=torch.float64)
        for state, shape in shapes.items():
            part, rest = rest[: shape.numel()], rest[shape.numel() :]
            setattr(own, state, part.reshape(shape).to(defaults[state].dtype))
        own._update_count = 1
        value = own.compute()
        return float(value) if value.ndim == 0 else value.double().flatten().tolist()

    return JobMetric(
        Metric(
            name, better, finish, name, size, low, high, unit=unit,
            in_training=in_training, selects=selects,
        ),
        sums,
    )  # fmt: skip


def _device_of(outputs: Any) -> torch.device:
    return outputs.device if isinstance(outputs, Tensor) else torch.device("cpu")
