"""The picture of the gap of averaged adapters."""

import numpy as np
import pytest

from mdc_flower.reports.adapter_gaps import gap_pictures
from tests.mdc_flower.reports.lines import line


def test_it_names_the_layer_with_the_largest_gap() -> None:
    history = [
        {**line(1), "adapter_gaps": {"q": 0.1, "v": 0.3}},
        {**line(2), "adapter_gaps": {"q": 0.2, "v": 0.4}},
    ]
    (picture,) = gap_pictures(history)
    assert picture.label == "In round 2: 0.3 as the mean of 2 layers, at most 0.4, in v."
    largest, mean = picture.figure.axes[0].lines[:2]
    assert np.asarray(largest.get_ydata()).tolist() == [0.3, 0.4]
    assert np.asarray(mean.get_ydata()).tolist() == pytest.approx([0.2, 0.3])


def test_a_run_without_adapters_and_one_of_an_earlier_version_have_none() -> None:
    assert gap_pictures([]) == gap_pictures([line(1)]) == []
    assert gap_pictures([{**line(1), "adapter_gaps": {"q": None}}]) == []
