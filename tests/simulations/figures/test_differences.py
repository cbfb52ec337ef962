"""Pictures of differences: where the points are, and that what is far away is still named."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from mdc_flower.reports.plotting import png
from simulations.figures.differences import draw_differences, draw_split_costs
from simulations.results.outcome import Outcome
from simulations.results.result_files import Results
from strategies.common.errors import DataError
from tests.simulations.made_up import ERRORS, error_point, outcome, results


def accuracies(*values: float) -> dict[int, object]:
    return {seed: outcome((2, value)) for seed, value in enumerate(values, 1)}


def comparison(name: str = "letters, 5 sites, IID", far: float = 0.58) -> Results:
    outcomes = {
        "pooled": accuracies(0.80, 0.82),
        "co-learning": accuracies(0.79, 0.83),  # -1 and +1 points
        "other": accuracies(0.77, 0.79),  # -3 and -3
        "far": accuracies(far, far + 0.02),
    }
    return results(outcomes, names=["pooled", "co-learning", "Other", "Far"], name=name)  # type: ignore[arg-type]


def points(axes: Axes) -> list[tuple[float, float]]:
    """Return the places of single markers."""
    data = [np.array(line.get_data(), dtype=np.float64).T for line in axes.lines]
    markers = [line.get_marker() for line in axes.lines]
    return [
        (round(float(one[0, 0]), 6), round(float(one[0, 1]), 6))
        for one, marker in zip(data, markers, strict=True)
        if len(one) == 1 and marker in ("o", "s", "^")
    ]


def test_each_arm_has_a_row_with_its_paired_difference_in_points() -> None:
    figure = draw_differences([comparison(far=0.75), comparison(far=0.75)])
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert points(axes) == [(0.0, 0.0), (-3.0, 1.0), (-5.0, 2.0)]
        low, high = axes.get_xlim()
        assert low < -5 < 0 < high
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["co-learning", "Other", "Far"]
    (axes,) = draw_differences([comparison()], ["other"]).axes
    assert points(axes) == [(-3.0, 0.0)], "only the arms that are asked for"


def test_what_is_far_away_is_an_arrow_with_its_number() -> None:
    (axes,) = draw_differences([comparison(far=-0.2)]).axes
    assert points(axes) == [(0.0, 0.0), (-3.0, 1.0)]
    assert [text.get_text() for text in axes.texts] == ["-100.00 ± 0.00"]
    assert axes.get_xlim()[0] > -100


def test_splits_have_a_row_each_below_the_name_of_their_data() -> None:
    names = ["letters, 2 sites, IID", "letters, 5 sites, IID", "voices, 6 sites, a speaker each"]
    figure = draw_split_costs([comparison(name) for name in names])
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        "letters",
        "2 sites, IID",
        "5 sites, IID",
        "voices",
        "6 sites, a speaker each",
    ]
    # Three arms in each of the rows 1, 2 and 4, a little apart.
    assert sorted((x, round(y)) for x, y in points(axes)) == sorted(
        (x, row) for row in (1, 2, 4) for x in (0.0, -3.0, -22.0)
    )
    texts = [text.get_text() for text in axes.texts]
    assert [texts.count(name) for name in ("co-learning", "Other", "Far")] == [1, 1, 1]
    assert png(figure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [(0.8, 0.9), (0.5,)], ids=["no-difference", "one-seed"])
def test_what_has_no_width_is_drawn(values: tuple[float, ...]) -> None:
    same = results({"a": accuracies(*values), "b": accuracies(*values)}, name="x, y, z")  # type: ignore[dict-item]
    (axes,) = draw_differences([same], bold="b").axes
    assert points(axes) == [(0.0, 0.0)]
    low, high = axes.get_xlim()
    assert low < 0 < high
    assert png(draw_split_costs([same]))


def test_differences_of_a_metric_that_is_no_share_are_in_its_unit() -> None:
    errors = {"pooled": (50.0, 52.0), "co-learning": (49.0, 51.0), "other": (53.0, 55.0)}
    made = {
        key: {seed: Outcome([error_point(2, value)]) for seed, value in enumerate(values, 1)}
        for key, values in errors.items()
    }
    regression = results(made, name="patients, 2 sites, IID", metrics=ERRORS)
    figure = draw_differences([regression])
    (axes,) = figure.axes
    assert points(axes) == [(-1.0, 0.0), (3.0, 1.0)]
    label = "test rmse minus pooled (m, below 0 is better), with 95% interval"
    assert figure.get_supxlabel().replace("\n", " ") == label
    both = draw_differences([regression, comparison(far=0.75)])
    assert [axes.get_xlabel().replace("\n", " ") for axes in both.axes] == [
        label,
        "test accuracy minus pooled (points), with 95% interval",
    ]
    assert [text.get_text() for text in both.axes[0].get_yticklabels()] == ["co-learning", "other"]
    with pytest.raises(DataError, match="do not have the same metric"):
        draw_split_costs([regression, comparison()])
    with pytest.raises(DataError, match="none of these arms in common"):
        draw_differences([regression, comparison()], ["far"])
    (axes,) = draw_split_costs([regression]).axes
    assert axes.get_xlabel() == label
    assert "51.00 ± 12.71 m" in [text.get_text() for text in axes.texts]
