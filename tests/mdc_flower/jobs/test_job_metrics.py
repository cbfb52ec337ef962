"""Metrics from sums: equal to the metric of all predictions, however they are divided."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as reference
from torch import Tensor, nn

from mdc_flower.jobs.metrics import JobMetric, from_torchmetrics, mean_of
from mdc_flower.jobs.multi_label import multi_label
from mdc_flower.jobs.regression import regression
from mdc_flower.jobs.segmentation import segmentation
from mdc_flower.jobs.torch_job import TorchJob
from strategies.common.errors import ConfigError
from strategies.exchange.metrics import Metric, Value

GENERATOR = torch.Generator().manual_seed(5)
COUNT = 97

Examples = tuple[Tensor, Tensor]


def drawn(*shape: int) -> Tensor:
    return torch.randn(COUNT, *shape, generator=GENERATOR)


SCORES, TRUTH = drawn(3), (drawn(3) > 0).float()
LINE, POINTS = drawn(1), drawn(1)
MAPS, MASKS = drawn(3, 4, 4), torch.randint(0, 3, (COUNT, 4, 4), generator=GENERATOR)
MASKS[:, 0] = 255


def value_of(job: TorchJob, name: str, batches: Sequence[Examples]) -> Value:
    """Return a metric of a job from the sums of batches, added in their order."""
    (metric,) = (one for one in job.metrics if one.name == name)
    total = torch.stack([_sums(job, metric, *batch) for batch in batches]).sum(0)
    return metric.finish(total.tolist())


def _sums(job: TorchJob, metric: Metric, outputs: Tensor, targets: Tensor) -> Tensor:
    for one in job.measured:
        if isinstance(one, JobMetric) and one.metric.sums == metric.sums:
            return one.sums(outputs, targets)
    raise AssertionError(metric.sums)


def divided(outputs: Tensor, targets: Tensor) -> list[Examples]:
    cuts = [0, 1, 30, 31, COUNT]
    return [(outputs[a:b], targets[a:b]) for a, b in pairwise(cuts)]


def nothing() -> nn.Module:
    raise AssertionError("no model is needed")


MULTI = multi_label(nothing, 3)
REGRESSION = regression(nothing)
SEGMENTS = segmentation(nothing, 3)
PREDICTED, TRUE = (SCORES.sigmoid() > 0.5).numpy(), TRUTH.numpy()
VALID = (MASKS != 255).numpy()
CLASSES = MAPS.argmax(1).numpy()


@pytest.mark.parametrize(
    ("job", "name", "examples", "expected"),
    [
        (MULTI, "f1-micro", (SCORES, TRUTH), reference.f1_score(TRUE, PREDICTED, average="micro")),
        (MULTI, "f1-macro", (SCORES, TRUTH), reference.f1_score(TRUE, PREDICTED, average="macro")),
        (MULTI, "exact-match", (SCORES, TRUTH), reference.accuracy_score(TRUE, PREDICTED)),
        (
            REGRESSION,
            "rmse",
            (LINE, POINTS),
            math.sqrt(reference.mean_squared_error(POINTS.double(), LINE.double())),
        ),
        (
            REGRESSION,
            "mae",
            (LINE, POINTS),
            reference.mean_absolute_error(POINTS.double(), LINE.double()),
        ),
        (REGRESSION, "r2", (LINE, POINTS), reference.r2_score(POINTS.double(), LINE.double())),
        (
            SEGMENTS,
            "mean-iou",
            (MAPS, MASKS),
            reference.jaccard_score(MASKS.numpy()[VALID], CLASSES[VALID], average="macro"),
        ),
        (
            SEGMENTS,
            "pixel-accuracy",
            (MAPS, MASKS),
            reference.accuracy_score(MASKS.numpy()[VALID], CLASSES[VALID]),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_metric_over_parts_equals_scikit_learns_over_all(
    job: TorchJob, name: str, examples: Examples, expected: float
) -> None:
    assert value_of(job, name, divided(*examples)) == pytest.approx(expected, rel=1e-12)


PROBABILITIES, LABELS = SCORES.sigmoid()[:, 0], TRUTH[:, 0].long()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchmetrics.AUROC("binary", thresholds=50),
        lambda: torchmetrics.AveragePrecision("binary", thresholds=50),
        lambda: torchmetrics.F1Score("binary"),
        lambda: torchmetrics.ConfusionMatrix("binary"),
    ],
    ids=["auroc", "average-precision", "f1", "confusion"],
)
def test_a_metric_of_torchmetrics_over_parts_equals_it_over_all(make: Callable[[], Any]) -> None:
    whole = make()
    whole.update(PROBABILITIES, LABELS)
    one = from_torchmetrics("m", "max", make())
    sums = torch.stack([one.sums(*batch) for batch in divided(PROBABILITIES, LABELS)]).sum(0)
    assert len(sums) == one.metric.size
    found = np.array(one.metric.finish(sums.tolist()))
    np.testing.assert_allclose(found, whole.compute().flatten().squeeze(), rtol=1e-7)
    again = np.array(one.metric.finish(sums.tolist()))
    np.testing.assert_array_equal(found, again)


def test_a_metric_of_torchmetrics_that_keeps_all_predictions_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be computed from sums") as caught:
        from_torchmetrics("auroc", "max", torchmetrics.AUROC("binary"))
    assert caught.value.where == "job, metric 'auroc'"
    assert "thresholds" in str(caught.value)


def test_sums_of_no_examples_give_no_value() -> None:
    def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs()

    metric = mean_of("mae", "min", absolute, then=math.sqrt)
    empty = metric.sums(torch.zeros(0), torch.zeros(0))
    assert math.isnan(metric.metric.finish(empty.tolist()))  # type: ignore[arg-type]
    for job, name, size in (
        (MULTI, "f1-micro", 9),
        (SEGMENTS, "mean-iou", 9),
        (REGRESSION, "r2", 4),
    ):
        (found,) = (one for one in job.metrics if one.name == name)
        assert math.isnan(found.finish([0.0] * size))  # type: ignore[arg-type]
