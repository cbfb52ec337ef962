"""The protocol of a training job: everything about data, model, loss and metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Value = float | list[float]
"""A metric's value: a number, or a list of numbers such as one for each class."""


@dataclass(frozen=True)
class Metric:
    """A metric that is computed from sums, so that pieces of it can be merged.

    Attributes
    ----------
    name : str
        Its name in records and tables.
    better : str
        ``max`` or ``min``: which values are better.
    sums : str
        Name of the sums in `Forward.sums` that it is computed from.
    finish : callable
        Takes these sums over all examples, as a list of float; returns the value.
    in_training : bool
        Whether it is also computed while training.
    selects : bool
        Whether it selects the best model.
    """

    name: str
    better: Literal["max", "min"]
    sums: str
    finish: Callable[[list[float]], Value]
    in_training: bool = True
    selects: bool = False


@dataclass(frozen=True)
class Pass:
    """One pass over a split of the data.

    Attributes
    ----------
    split : str
        ``train``, ``validation`` or ``test``.
    device : torch.device
        Where the batches are needed.
    generator : torch.Generator or None
        Draws the order of the examples, and the augmentation; None for the stored order.
    augment : bool
        Whether to augment the examples.
    """

    split: str
    device: torch.device
    generator: torch.Generator | None = None
    augment: bool = False


@dataclass(frozen=True)
class Forward:
    """What a forward pass of one batch gives.

    Attributes
    ----------
    loss : Tensor
        The mean loss, to be minimized; a scalar.
    count : int
        What the mean is over: the number of examples, or of tokens.
    sums : Mapping[str, Tensor]
        The sums of the metrics, each a float64 vector on the device.
    loss_sum : Tensor or None
        The sum of the loss, where it is known more exactly than ``loss * count``.
    """

    loss: Tensor
    count: int
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    loss_sum: Tensor | None = None


class Job(Protocol):
    """A training job of one site or of the coordinator, with its data."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics that this job knows."""
        ...

    def model(self) -> nn.Module:
        """Return a new model with the run's initial weights, on the CPU."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Change a model on its device, in place, before it is trained: its memory layout."""
        ...

    def batches(self, which: Pass) -> Iterable[Any]:
        """Yield the batches of a pass."""
        ...

    def size(self, split: str) -> int:
        """Return the number of examples of a split."""
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes when the training examples change."""
        ...

    def steps_per_epoch(self) -> int:
        """Return the number of batches in a pass over the training examples."""
        ...

    def forward(self, model: Callable[[Any], Any], batch: Any) -> Forward:
        """Return loss and sums of a batch; it is in training where gradients are enabled."""
        ...

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimizer; the plan sets its learning rate before each step."""
        ...


def numbers(metrics: Mapping[str, Value]) -> dict[str, float]:
    """Return the metrics that are single numbers."""
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


def values_of(metrics: Iterable[Metric], sums: Mapping[str, Tensor]) -> dict[str, Value]:
    """Return the value of each metric whose sums are known."""
    return {
        metric.name: metric.finish(sums[metric.sums].tolist())
        for metric in metrics
        if metric.sums in sums
    }


def add_sums(total: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Add the sums of a batch to a total, in place, without waiting for the device."""
    for name, values in more.items():
        if name in total:
            total[name] += values
        else:
            total[name] = values.clone()
