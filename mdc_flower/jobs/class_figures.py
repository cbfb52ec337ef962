"""Figures of a classification, class by class, from the probabilities of all test examples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def class_figures(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    """Return counts, precision and AUROC of each class, and the confusion matrix.

    Parameters
    ----------
    probabilities
        Shape (examples, classes).
    labels
        The true class of each example.
    class_names
        Names of the classes.

    Returns
    -------
    dict
        ``examples`` of each class; its ``precision``, None if it was never predicted; its
        ``auroc`` against all other classes, None if there are no examples on one side; and
        ``confusion``: for each true class, how often each class was predicted, without zeros.
    """
    count = len(class_names)
    predicted = probabilities.argmax(1)
    confusion = np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)
    said = confusion.sum(0)
    right = np.diagonal(confusion)
    names = list(class_names)
    return {
        "examples": dict(zip(names, confusion.sum(1).tolist(), strict=True)),
        "precision": {
            name: float(right[row] / said[row]) if said[row] else None
            for row, name in enumerate(names)
        },
        "auroc": {
            name: _none_if_nan(auroc(probabilities[:, row], labels == row))
            for row, name in enumerate(names)
        },
        "confusion": {
            name: {names[column]: int(confusion[row, column]) for column in np.flatnonzero(counts)}
            for row, (name, counts) in enumerate(zip(names, confusion, strict=True))
        },
    }


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: how often a positive example has the higher score.

    Equal scores count half. NaN without examples on both sides.
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return math.nan
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    above = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
