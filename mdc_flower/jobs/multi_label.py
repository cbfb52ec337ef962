"""Multi-label classification: each example has any number of the labels."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mdc_flower.jobs.metrics import JobMetric, mean_of
from mdc_flower.jobs.torch_job import TorchJob, torch_job
from strategies.exchange.metrics import Metric


def multi_label(
    model: Callable[[], nn.Module],
    num_labels: int,
    threshold: float = 0.5,
    label_weights: Tensor | None = None,
    **options: Any,
) -> TorchJob:
    """Return a job with binary cross-entropy; the best model has the largest micro-averaged F1.

    Parameters
    ----------
    model
        Builds a model with one output for each label, before the sigmoid.
    num_labels
        Number of labels. Targets are 0 or 1, of shape (examples, num_labels).
    threshold
        A label is predicted if its probability is above this.
    label_weights
        Weight of each label's positive examples in the loss, shape (num_labels,); None for equal
        weights.
    options
        Data, optimizer and everything else; see `torch_job`.
    """

    def counts(outputs: Tensor, targets: Tensor) -> Tensor:
        predicted, true = outputs.sigmoid() > threshold, targets > 0.5
        pairs = (predicted & true, predicted & ~true, ~predicted & true)
        return torch.cat([pair.sum(0).double() for pair in pairs])

    def all_right(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs.sigmoid() > threshold) == (targets > 0.5)).all(1)

    size, one = 3 * num_labels, (0.0, 1.0)
    metrics = (
        JobMetric(
            Metric("f1-micro", "max", _micro, "f1", size, 0, 1, one, "%", selects=True), counts
        ),
        Metric("f1-macro", "max", _macro, "f1", size, 0, 1, one, "%"),
        mean_of("exact-match", "max", all_right, unit="%", low=0, high=1, per_example_range=one),
    )
    return torch_job(model=model, loss=_Loss(pos_weight=label_weights), metrics=metrics, **options)


class _Loss(nn.BCEWithLogitsLoss):
    """Binary cross-entropy, for targets of any type."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().forward(outputs, targets.to(outputs.dtype))


def _f1(hits: float, false_alarms: float, misses: float) -> float:
    """Return F1; NaN if a label neither occurs nor is predicted."""
    denominator = 2 * hits + false_alarms + misses
    return 2 * hits / denominator if denominator else math.nan


def _by_label(sums: list[float]) -> list[tuple[float, float, float]]:
    third = len(sums) // 3
    return list(zip(sums[:third], sums[third : 2 * third], sums[2 * third :], strict=True))


def _micro(sums: list[float]) -> float:
    """Return the F1 of all labels taken together."""
    hits, false_alarms, misses = (sum(column) for column in zip(*_by_label(sums), strict=True))
    return _f1(hits, false_alarms, misses)


def _macro(sums: list[float]) -> float:
    """Return the mean F1 of the labels that occur or are predicted."""
    known = [f1 for counts in _by_label(sums) if not math.isnan(f1 := _f1(*counts))]
    return sum(known) / len(known) if known else math.nan
