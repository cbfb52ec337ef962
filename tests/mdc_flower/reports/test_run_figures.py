"""The pictures of a run: all of them, whatever happened."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mdc_flower.common.shown_metrics import OF_A_CLASSIFICATION
from mdc_flower.reports.run_figures import (
    draw_bytes,
    draw_learning_rate,
    draw_local_work,
    draw_metric,
    draw_relative_change,
    draw_run,
)
from tests.mdc_flower.reports.lines import by_sites, line

LOSS, ACCURACY, *_ = OF_A_CLASSIFICATION


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "history",
    [
        [],
        [line(1)],
        [line(1), line(2), line(3)],
        [line(1, None), line(2)],
        [line(1, None), line(2, None)],
        [line(1, local_steps=10), line(2, local_steps=10)],
        [line(1) | {"evaluation": {}}],  # a coordinator without validation or test examples
        [line(1) | {"relative_change": 0.0}],
        [line(1) | by_sites(0.1), line(2) | by_sites(0.2, 0.3)],
        [line(1) | by_sites() | {"participants": {"site-0": {"num-examples": 3}}}],
        [
            line(1),
            line(2) | {"participants": {"a": {"num-examples": 3}, "b": {"train-accuracy": 0.5}}},
        ],
    ],
    ids=[
        "empty",
        "one",
        "three",
        "gap",
        "failed",
        "steps",
        "not-evaluated",
        "settled",
        "by-sites",
        "all-kept-back",
        "some-kept-back",
    ],
)
def test_a_run_is_drawn_whatever_happened(history: list[dict[str, Any]]) -> None:
    image = Image.open(io.BytesIO(draw_run(history, RECALIBRATION)))
    image.load()
    assert image.format == "PNG"


RECALIBRATION = {
    "evaluation": {"test-accuracy": 0.9, "validation-accuracy": 0.8},
    "site_evaluation": {"validation-accuracy": 0.7},
}


def test_the_recalibrated_model_is_a_marker_with_a_name_after_the_last_round() -> None:
    history = [line(1, 0.5, local_epochs=2), line(2, 0.6, local_epochs=4)]
    figure = draw_metric(history, ACCURACY, RECALIBRATION)
    # As much local work behind it as behind the last round's model.
    assert drawn(figure, "*") == [([6], [0.9]), ([6], [0.8]), ([6], [0.7])]
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low < 0.5 < 0.9 < high
    names = {text.get_text(): text.get_color() for text in axes.texts}
    # The curves' own names, and the points', in the colors of their curves.
    assert {name for name in names if "recalibrated" in name} == {
        "test, recalibrated",
        "validation, recalibrated",
        "sites, validation, recalibrated",
    }
    for name in ("test", "validation"):
        assert names[name] == names[f"{name}, recalibrated"]
    # Of what is not known there is none.
    assert drawn(draw_metric(history, ACCURACY, {}), "*") == []
    assert drawn(draw_metric(history, LOSS, RECALIBRATION), "*") == []


def drawn(figure: Figure, marker: str = "") -> list[tuple[list[float], list[float]]]:
    """Return x and y of every line of a figure, or of those with a marker."""
    (axes,) = figure.axes
    return [
        (np.asarray(one.get_xdata(), float).tolist(), np.asarray(one.get_ydata(), float).tolist())
        for one in axes.lines
        if marker in ("", one.get_marker())
    ]


def test_a_rounds_learning_rate_goes_from_its_first_to_its_last_value() -> None:
    # Two epochs, then four; from 0.1 to 0.05 in each.
    history = [line(1, local_epochs=2), line(2, local_epochs=4)]
    first, second, end_of_first = drawn(draw_learning_rate(history))
    assert [(xs[0], xs[-1]) for xs, _ in (first, second)] == [(0, 2), (2, 6)]
    for _, ys in (first, second):
        assert [ys[0], ys[-1]] == pytest.approx([0.1, 0.05])
    assert end_of_first[0] == [2, 2]


def test_a_plan_that_this_version_does_not_understand_is_a_gap() -> None:
    other = line(1)
    other["plan"]["shape"] = "zigzag"
    assert drawn(draw_learning_rate([other])) == []


def test_a_round_is_as_high_as_its_local_work_and_its_bytes() -> None:
    history = [
        line(1, local_epochs=2) | {"sent_bytes": 3_000_000, "received_bytes": 1_500_000},
        line(2, local_epochs=4) | {"sent_bytes": 6_000_000},
    ]
    (axes,) = draw_local_work(history).axes
    assert list(axes.patches[-1].get_data().values) == [2, 4]  # type: ignore[attr-defined]
    (axes,) = draw_bytes(history).axes
    heights = [list(patch.get_data().values) for patch in axes.patches]  # type: ignore[attr-defined]
    # In megabytes; what is received goes down, and of round 2 an old version did not say it.
    assert heights == [[3, 6], [3, 6], [-1.5, 0], [-1.5, 0]]
    assert axes.get_ylabel() == "model bytes per round (MB)"


def test_the_relative_change_has_its_threshold_where_there_is_one() -> None:
    assert len(drawn(draw_relative_change([line(1)]))) == 1
    threshold, change = drawn(draw_relative_change([line(1)], 0.02))
    assert set(threshold[1]) == {0.02}
    for history, words in (
        ([line(1)], "local epochs double below"),
        ([line(1, local_steps=10)], "local steps double below"),
    ):
        (axes,) = draw_relative_change(history, 0.02).axes
        assert words in [text.get_text() for text in axes.texts]
    assert change == ([1], [0.1])
