"""The protocol of a training job: everything about data, model, loss and metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from strategies.exchange.metrics import Metric, Value


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
    start : int
        For a stream: how many of its batches were used in the rounds before.
    rank, ranks : int
        This process and the number of processes that share each batch. All draw the same order from
        their generators, and each computes its `part` of every batch.
    skip : int
        For stored examples: how many batches of this pass were used in the rounds before; the pass
        yields the others, in the order that it has without ``skip``.
    """

    split: str
    device: torch.device
    generator: torch.Generator | None = None
    augment: bool = False
    start: int = 0
    rank: int = 0
    ranks: int = 1
    skip: int = 0

    def part(self, count: int) -> "Part":
        """Return this process's part of a batch of ``count`` examples.

        The processes take the examples in turn. A process gets none rather than a single one,
        because BatchNorm cannot train on one example; it then repeats others, which do not count.
        """
        sharing = min(self.ranks, max(1, count // 2))
        if self.rank < sharing:
            return Part(slice(self.rank, None, sharing))
        return Part(slice(0, 2), is_spare=True)


@dataclass(frozen=True)
class Part:
    """The rows of a batch that one of several processes computes.

    Attributes
    ----------
    rows : slice
        Of the rows of the batch.
    is_spare : bool
        Whether the rows are computed only because all processes take every step together; a job
        then yields the batch as a `Spare`.
    """

    rows: slice
    is_spare: bool = False

    def of(self, batch: Any) -> Any:
        """Return the batch, marked if it does not count."""
        return Spare(batch) if self.is_spare else batch


@dataclass(frozen=True)
class Spare:
    """A batch that a process computes only to take every step with the others."""

    batch: Any


class Counted(NamedTuple):
    """A batch on the device, and what each of its examples adds to `Forward.count`.

    The numbers stay on the CPU, so that it need not wait for a GPU to know them. They are divided
    with the batch, among processes and into micro-batches.

    Attributes
    ----------
    batch : object
        The batch.
    units : Tensor
        Integers; the first axis is the examples.
    """

    batch: Any
    units: Tensor


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
    examples : int
        The number of examples in the batch; 0 if it is ``count``.
    """

    loss: Tensor
    count: int
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    loss_sum: Tensor | None = None
    examples: int = 0


class Job(Protocol):
    """A training job of one site or of the coordinator, with its data.

    It may also have a method ``signature``, which returns what coordinator and sites must have in
    common beside the metrics: a mapping of names to texts, numbers or bools.
    """

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics that this job knows; the first is the loss, whose sums the loop makes."""
        ...

    def model(self) -> nn.Module:
        """Return a new model with the run's initial weights, on the CPU."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Change a model on its device, in place, before it is trained: its memory layout."""
        ...

    def batches(self, which: Pass) -> Iterable[Any]:
        """Yield the batches of a pass: of each batch the part of this process, see `Pass.part`."""
        ...

    def size(self, split: str) -> int | None:
        """Return the number of examples of a split; 0 if there are none, None for a stream."""
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


def values_of(metrics: Iterable[Metric], sums: Mapping[str, list[float]]) -> dict[str, Value]:
    """Return the value of each metric whose sums are known."""
    return {
        metric.name: metric.finish(sums[metric.sums]) for metric in metrics if metric.sums in sums
    }


def sent_of(metrics: Sequence[Metric], sums: Mapping[str, list[float]]) -> dict[str, Value]:
    """Return what a site sends of each metric that may leave it: its value, or its sums."""
    values = values_of(metrics, sums)
    return {
        metric.name: sums[metric.sums] if metric.size else values[metric.name]
        for metric in metrics
        if metric.leaves_site and metric.name in values
    }


def add_sums(total: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Add the sums of a batch to a total, in place, without waiting for the device."""
    for name, values in more.items():
        if name in total:
            total[name] += values
        else:
            total[name] = values.clone()
