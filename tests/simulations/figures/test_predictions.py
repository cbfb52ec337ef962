"""A model at work: probabilities, the least clear examples, and pictures of both."""

import numpy as np
import pytest
import torch
from torch import nn

from mdc_flower.data import Examples
from mdc_flower.reports.plotting import png
from simulations.figures.predictions import (
    draw_predictions,
    draw_probabilities,
    least_sure,
    predict,
)
from tests.mdc_flower.examples import linear

SAID = np.array([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8]])
LABELS = np.array([0, 0, 1])
IMAGES = Examples(np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2), LABELS)


def test_inputs_are_normalized_as_the_file_says() -> None:
    model: nn.Module = linear([[1.0], [0.0]])
    examples = Examples(np.array([[2.0], [6.0]], dtype=np.float32), np.array([0, 1]))
    said = predict(model, {"mean": [2.0], "std": [2.0]}, examples)
    # (2 - 2) / 2 = 0 and (6 - 2) / 2 = 2: the outputs are (0, 0) and (2, 0).
    expected = torch.softmax(torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64), 1)
    assert said == pytest.approx(expected.numpy())


def test_the_least_sure_come_first() -> None:
    assert least_sure(SAID, 2).tolist() == [1, 2]


def test_an_image_has_what_is_said_of_it_and_a_wrong_one_what_it_is() -> None:
    figure = draw_predictions(IMAGES, SAID, ["cat", "dog"], {"all": [0, 1, 2]})
    titles = [axes.get_title() for part in figure.subfigs for axes in part.axes]
    labels = [axes.get_xlabel() for part in figure.subfigs for axes in part.axes]
    assert titles == ["cat: 90 %", "dog: 55 %", "dog: 80 %"]
    assert labels == ["", "is cat", ""]
    assert png(figure)


def test_probabilities_are_drawn_by_true_class() -> None:
    figure = draw_probabilities(SAID, LABELS, ["cat", "dog"], of=1)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "cat: 1 of 2 are on the right side of 0.5",
        "dog: 1 of 1 are on the right side of 0.5",
    ]
    assert png(figure)
