"""How far diabetes has gone after a year: a regression on the 442 patients of scikit-learn."""

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Subset, TensorDataset

from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.regression import regression
from mdc_flower.jobs.torch_job import TorchJob

MEAN, SPREAD = 152.0, 77.0
"""Mean and standard deviation of the scores, in points."""

COLUMNS_SPREAD = 0.0476
"""Standard deviation of each of the ten columns, whose mean is 0."""

PARTS = {"train": (0, 1, 2, 3), "validation": (4,), "test": (5,)}
"""Every sixth patient, counted from each of these, belongs to the split."""


class Network(nn.Module):
    """Two layers, whose output is a score in points."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, patients: Tensor) -> Tensor:
        """Return the scores ``(batch, 1)`` of patients ``(batch, 10)``."""
        scores: Tensor = MEAN + SPREAD * self.layers(patients)
        return scores


def job(context: JobContext) -> TorchJob:
    """Return the regression; each site has its own patients of each split."""
    inputs, scores = load_diabetes(return_X_y=True)
    patients = TensorDataset(
        torch.tensor(inputs / COLUMNS_SPREAD, dtype=torch.float32),
        torch.tensor(scores, dtype=torch.float32)[:, None],
    )
    splits = {}
    for split, places in PARTS.items():
        rows = np.flatnonzero(np.isin(np.arange(len(patients)) % 6, places))
        splits[split] = Subset(patients, rows[context.rows(len(rows))].tolist())
    return regression(Network, _loss, unit="points", batch_size=context.config.batch_size, **splits)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error, in units of the scores' variance."""
    return functional.mse_loss(outputs / SPREAD, targets / SPREAD)
