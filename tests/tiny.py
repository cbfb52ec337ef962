"""The smallest possible job: 24 vectors of two classes and a linear model.

Use it for whole runs whose result does not matter: they take hundredths of a second.
"""

from typing import Any

import numpy as np
from torch import nn

from mdc_flower.data import DataSet, Examples

KEYS: dict[str, Any] = {
    "dataset": "tests.tiny:vectors",
    "model": "tests.tiny:linear",
    "batch-size": 4,
    "epochs": "fixed",
    "local-epochs": 1,
    "epoch-budget": 2,
}
"""Run config keys of this job."""


def vectors() -> DataSet:
    """Return 24 training and 8 test vectors of length 4; the first value decides the class."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(32, 4)).astype(np.float32)
    labels = (inputs[:, 0] > 0).astype(np.int64)
    return DataSet(
        name="vectors",
        train=Examples(inputs[:24], labels[:24]),
        test=Examples(inputs[24:], labels[24:]),
        class_names=["low", "high"],
    )


def linear(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a linear model."""
    return nn.Linear(input_shape[0], num_classes)


def adapted(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a frozen layer and a linear model."""
    frozen = nn.Linear(input_shape[0], 4).requires_grad_(False)
    return nn.Sequential(frozen, nn.Linear(4, num_classes))


def normalized(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return BatchNorm followed by a linear model."""
    return nn.Sequential(nn.BatchNorm1d(input_shape[0]), nn.Linear(input_shape[0], num_classes))


def noisy(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a network with BatchNorm and dropout; two processes cannot halve its layers."""
    hidden = [nn.Linear(input_shape[0], 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*hidden, nn.Linear(5, num_classes))
