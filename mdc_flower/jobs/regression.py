"""Regression: one or more numbers for each example."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdc_flower.jobs.metrics import NOT_NEGATIVE, JobMetric, mean_of
from mdc_flower.jobs.torch_job import TorchJob, torch_job
from strategies.exchange.metrics import Metric


def regression(
    model: Callable[[], nn.Module],
    loss: Callable[[Tensor, Tensor], Tensor] = functional.mse_loss,
    unit: str = "",
    **options: Any,
) -> TorchJob:
    """Return a job whose targets are numbers; the best model has the smallest root mean error.

    Parameters
    ----------
    model
        Builds a model whose outputs have the shape of the targets.
    loss
        Takes outputs and targets; returns their mean loss.
    unit
        Unit of the targets, for tables and figures.
    options
        Data, optimizer and everything else; see `torch_job`.
    """
    metrics = (
        mean_of(
            "rmse",
            "min",
            _squared,
            unit=unit,
            low=0,
            per_example_range=NOT_NEGATIVE,
            selects=True,
            then=math.sqrt,
        ),
        mean_of("mae", "min", _absolute, unit=unit, low=0, per_example_range=NOT_NEGATIVE),
        JobMetric(Metric("r2", "max", _r2, "r2", 4, high=1.0), _r2_sums),
    )
    return torch_job(model=model, loss=loss, metrics=metrics, **options)


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.double() - targets.double()) ** 2


def _absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.double() - targets.double()).abs()


def _r2_sums(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the count, the sums of targets and of their squares, and of squared errors."""
    y = targets.double()
    count = y.new_full((), y.numel())
    return torch.stack([count, y.sum(), (y**2).sum(), _squared(outputs, targets).sum()])


def _r2(sums: list[float]) -> float:
    """Return the share of the targets' variance that is explained; NaN if they do not vary."""
    count, total, squares, errors = sums
    spread = squares - total**2 / count if count else 0.0
    return 1.0 - errors / spread if spread > 0 else math.nan
