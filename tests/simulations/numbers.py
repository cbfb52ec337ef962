"""A data set whose examples are their own row numbers, and a model that notes what it is given.

Named in configs as ``tests.simulations.numbers:...``.
"""

import numpy as np
import torch
from torch import Tensor, nn

from mdc_flower.data import DataSet, Examples

NUM_TRAIN, NUM_TEST = 80, 20

trained_on: list[list[float]] = []
"""First values of each batch that a `Recorder` was trained on, since it was last cleared."""

evaluated_on: list[list[float]] = []
"""The same for batches that one was evaluated on."""


def numbers() -> DataSet:
    """Return 80 training examples 0, 1, ... and 20 test examples 1000, 1001, ..."""
    return DataSet("numbers", _rows(0, NUM_TRAIN), _rows(1000, NUM_TEST), ["even", "odd"])


def always_even() -> DataSet:
    """Return the same examples, of which all to test on are of class even."""
    test = _rows(1000, NUM_TEST)
    none_odd = Examples(test.inputs, np.zeros_like(test.labels))
    return DataSet("numbers", _rows(0, NUM_TRAIN), none_odd, ["even", "odd"])


def _rows(first: int, count: int) -> Examples:
    rows = first + np.arange(count)
    return Examples(rows.astype(np.float32)[:, None], (rows % 2).astype(np.int64))


class Recorder(nn.Module):
    """A linear model of the inputs' signs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        # Without gradients in training mode it is only checked that the model fits the data.
        if not self.training or torch.is_grad_enabled():
            (trained_on if self.training else evaluated_on).append(inputs[:, 0].tolist())
        outputs: Tensor = self.layer(torch.sign(inputs))
        return outputs


def recorder(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a `Recorder`."""
    return Recorder()
