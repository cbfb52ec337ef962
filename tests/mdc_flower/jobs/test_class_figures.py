"""Counts, precision, AUROC and confusion of each class, from probabilities."""

import math

import numpy as np
import pytest

from mdc_flower.jobs.class_figures import auroc, class_figures

PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]])
LABELS = np.array([0, 0, 1, 1])


def test_the_figures_of_each_class_are_those_counted_by_hand() -> None:
    found = class_figures(PROBABILITIES, LABELS, ["a", "b", "c"])
    assert found["examples"] == {"a": 2, "b": 2, "c": 0}
    assert found["precision"] == {"a": 2 / 3, "b": 1.0, "c": None}
    assert found["confusion"] == {"a": {"a": 2}, "b": {"a": 1, "b": 1}, "c": {}}
    assert found["auroc"] == {"a": 1.0, "b": 1.0, "c": None}


def test_auroc_is_the_share_of_pairs_in_order_and_equal_scores_count_half() -> None:
    random = np.random.default_rng(0)
    scores, positive = random.integers(0, 6, 50).astype(float), random.random(50) < 0.4
    pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert math.isnan(auroc(scores, np.zeros(50, bool)))
