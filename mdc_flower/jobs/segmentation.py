"""Semantic segmentation: a class for each pixel."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mdc_flower.jobs.metrics import NOT_NEGATIVE, JobMetric
from mdc_flower.jobs.torch_job import TorchJob, torch_job
from strategies.exchange.metrics import LOSS, Metric

IGNORED = 255
"""Label of a pixel that does not count."""


def segmentation(
    model: Callable[[], nn.Module],
    num_classes: int,
    class_weights: Tensor | None = None,
    ignored: int = IGNORED,
    **options: Any,
) -> TorchJob:
    """Return a job with cross-entropy per pixel; the best model has the largest mean IoU.

    Parameters
    ----------
    model
        Builds a model with outputs (examples, num_classes, height, width), before the softmax. A
        model of torchvision's, which returns a dictionary, works too: its ``out`` is used.
    num_classes
        Number of classes. Targets are class numbers, int64, (examples, height, width).
    class_weights
        Weight of each class in the loss, shape (num_classes,); None for equal weights.
    ignored
        Label of pixels that do not count.
    options
        Data, optimizer and everything else; see `torch_job`.
    """
    size = num_classes**2

    def units(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (batch[1] != ignored).flatten(1).sum(1)

    def confusion(outputs: Tensor, targets: Tensor) -> Tensor:
        # Sorted, because the CPU must wait for a GPU to select the valid pixels, or for `bincount`.
        cells = (targets * num_classes + outputs.argmax(1)).masked_fill(targets == ignored, size)
        edges = torch.arange(size + 1, device=cells.device)
        return torch.searchsorted(cells.flatten().sort().values, edges).diff().double()

    # A forward pass of the user's may make other targets, which only the loss then counts.
    usual = {} if "forward" in options else {"forward": _outputs, "units": units}
    iou = Metric(
        "mean-iou", "max", _mean_iou, "confusion", size, 0, 1, NOT_NEGATIVE, "%", selects=True
    )
    pixels = Metric("pixel-accuracy", "max", _right, "confusion", size, 0, 1, NOT_NEGATIVE, "%")
    return torch_job(
        model=model,
        loss=_PixelLoss(class_weights, ignored),
        metrics=(JobMetric(iou, confusion), pixels),
        loss_metric=Metric(LOSS.name, "min", LOSS.finish, LOSS.sums, 2, unit="nats"),
        **{**usual, **options},
    )


class _PixelLoss(nn.Module):
    """The sum of the cross-entropy over the pixels that count, and how many these are."""

    def __init__(self, class_weights: Tensor | None, ignored: int) -> None:
        super().__init__()
        self.each = nn.CrossEntropyLoss(class_weights, ignore_index=ignored, reduction="none")

    def forward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses: Tensor = self.each(outputs, targets)
        # Summed in float64, so that it does not matter how the examples are divided into batches.
        return losses.double().sum(), (targets != self.each.ignore_index).sum()


def _outputs(model: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    images, targets = batch
    outputs = model(images)
    return (outputs["out"] if isinstance(outputs, dict) else outputs), targets


def _rows(sums: list[float]) -> list[list[float]]:
    """Return the confusion matrix: rows are true classes, columns are predicted ones."""
    size = math.isqrt(len(sums))
    return [sums[start : start + size] for start in range(0, len(sums), size)]


def _mean_iou(sums: list[float]) -> float:
    """Return the mean over the classes of intersection by union; absent classes do not count."""
    rows = _rows(sums)
    columns = [sum(column) for column in zip(*rows, strict=True)]
    unions = [sum(row) + columns[i] - row[i] for i, row in enumerate(rows)]
    known = [
        row[i] / union for i, (row, union) in enumerate(zip(rows, unions, strict=True)) if union
    ]
    return sum(known) / len(known) if known else math.nan


def _right(sums: list[float]) -> float:
    """Return the share of pixels whose class is predicted."""
    total = sum(sums)
    return sum(row[i] for i, row in enumerate(_rows(sums))) / total if total else math.nan
