"""A job whose training examples are an endless stream, with a few to evaluate on.

Named in configs as ``tests.simulations.streams:endless``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.regression import regression
from mdc_flower.jobs.torch_job import TorchJob


class Doubles(IterableDataset[tuple[Tensor, Tensor]]):
    """Numbers and their doubles, without end."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets."""
        number = 0
        while True:
            number += 1
            value = torch.tensor([number % 7 / 7])
            yield value, 2 * value


def endless(context: JobContext) -> TorchJob:
    """Return a regression on the stream; it makes batches of the size that the run asks for."""
    x = torch.arange(4.0)[:, None]
    return regression(
        lambda: nn.Linear(1, 1),
        train=Doubles(),
        validation=TensorDataset(x, 2 * x),
        batch_size=context.config.batch_size,
    )


def stubborn(context: JobContext) -> TorchJob:
    """Return the same with batches of four, whatever the run asks for."""
    x = torch.arange(4.0)[:, None]
    return regression(
        lambda: nn.Linear(1, 1), train=Doubles(), validation=TensorDataset(x, 2 * x), batch_size=4
    )
