"""Predictions of a trained model, and figures of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from mdc_flower.data import Examples
from mdc_flower.jobs.classification import class_probabilities
from mdc_flower.reports.plotting import DARK, MIDDLE, finish
from mdc_flower.training.batches import InputPipeline

Probabilities = NDArray[np.float64]
"""Array of shape (examples, classes), values in [0, 1]; each row sums to 1."""


def predict(model: nn.Module, about: Mapping[str, Any], examples: Examples) -> Probabilities:
    """Return the probability of each class for each example.

    Parameters
    ----------
    model, about
        Return values of `mdc_flower.jobs.model_files.load_model`.
    """
    pipeline = InputPipeline(tuple(about["mean"]), tuple(about["std"]))
    inputs = torch.from_numpy(np.array(examples.inputs))
    return np.asarray(class_probabilities(model, inputs, pipeline, torch.device("cpu")))


def least_sure(probabilities: Probabilities, count: int) -> NDArray[np.int64]:
    """Return the indices of the least certain predictions, the least certain first."""
    return np.argsort(probabilities.max(axis=1), kind="stable")[:count]


def draw_predictions(
    examples: Examples,
    probabilities: Probabilities,
    class_names: Sequence[str],
    rows: Mapping[str, Sequence[int]],
) -> Figure:
    """Draw images with their predicted classes; a frame marks wrong predictions.

    Parameters
    ----------
    examples
        Images of shape ``(N, 1, H, W)`` or ``(N, 3, H, W)``.
    rows
        Indices of the examples in each row of the figure, by row title.
    """
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(1.15 * columns, 1.75 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (title, which) in zip(parts, rows.items(), strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=10)
        for axes, row in zip(part.subplots(1, columns), which, strict=True):
            image = np.moveaxis(examples.inputs[row], 0, -1)
            axes.imshow(image.squeeze(), cmap="gray_r")
            predicted, true = int(probabilities[row].argmax()), int(examples.labels[row])
            wrong = predicted != true
            axes.set_title(
                f"{class_names[predicted]}: {100 * probabilities[row, predicted]:.0f} %",
                fontsize=9,
                color=MIDDLE if wrong else "black",
                fontweight="bold" if wrong else "normal",
            )
            if wrong:
                axes.set_xlabel(f"is {class_names[true]}", fontsize=9, color=MIDDLE)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=MIDDLE if wrong else "0.8", linewidth=2.5 if wrong else 0.8)
    return figure


def draw_probabilities(
    probabilities: Probabilities,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    of: int,
) -> Figure:
    """Draw a histogram of the predicted probability of one class, for each true class.

    Parameters
    ----------
    of
        Index of the class whose probability is drawn.
    """
    figure = Figure(figsize=(7, 1.5 * len(class_names) + 0.6), layout="constrained")
    panels = figure.subplots(len(class_names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    edges = np.linspace(0, 1, 21)
    for label, axes in enumerate(panels):
        values = probabilities[labels == label, of]
        right = (values > 0.5) == (label == of)
        axes.hist(
            [values[right], values[~right]],
            edges,
            stacked=True,
            color=[DARK, "white"],
            edgecolor=DARK,
            hatch=["", "////"],
            linewidth=0.8,
        )
        axes.set_title(
            f"{class_names[label]}: {right.sum()} of {len(right)} are on the right side of 0.5",
            loc="left",
            fontsize=10,
        )
        axes.axvline(0.5, color="0.25", linestyle="--", linewidth=1)
        axes.set(ylabel="examples", xlim=(0, 1))
        finish(axes)
    panels[-1].set_xlabel(f"probability of “{class_names[of]}” that the model gives")
    return figure
