"""The pictures of a comparison."""

import numpy as np
import pytest

from mdc_flower.reports.plotting import png
from simulations.figures.curves import THIN, WIDE, plot_curves
from simulations.figures.exchanges import plot_exchanges
from simulations.figures.panels import draw_panels
from simulations.results.outcome import Outcome
from tests.simulations.made_up import ERRORS, error_point, outcome, results

FULL = {"a": {1: outcome((2, 0.5), (4, 0.9)), 2: outcome((2, 0.4), (4, 0.8))}}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("b", "lines"),
    [
        (
            {1: outcome((1, 0.8), (4, 0.85)), 2: outcome((1, 0.6), (4, 0.7))},
            [[1, 0.7], [4, 0.775]],
        ),
        ({1: outcome((1, 0.6), (4, 0.9)), 2: outcome((3, 0.5), (4, 0.7))}, [[4, 0.8]]),
        ({1: outcome((4, 1.0))}, [[4, 1.0]]),
        # The last round of one seed failed: the seeds share no point at all.
        ({1: outcome((1, 0.6), (4, 0.9)), 2: outcome((2, 0.5))}, [[4, 0.7]]),
    ],
    ids=["all-shared", "last-shared", "one-seed", "none-shared"],
)
def test_a_curve_is_the_mean_at_the_points_that_the_seeds_share(
    b: dict[int, Outcome], lines: list[list[float]]
) -> None:
    figure = draw_panels(plot_curves, [results({**FULL, "b": b}, seeds=[1, 2])])
    (x, y) = figure.axes[0].lines[1].get_data()
    assert np.stack([x, y], axis=1).tolist() == [pytest.approx(place) for place in lines]
    assert png(figure)


def test_every_arm_is_named_and_only_highlighted_ones_have_a_band() -> None:
    both = results({**FULL, "b": FULL["a"]}, highlight=["b"])
    axes = draw_panels(plot_curves, [both]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    assert [line.get_linewidth() for line in axes.lines] == [THIN, WIDE]
    assert len(axes.collections) == 1


def test_an_arm_has_the_same_colour_beside_any_others() -> None:
    alone = draw_panels(plot_curves, [results({"fedavg": FULL["a"]})]).axes[0]
    beside = draw_panels(plot_curves, [results({"a": FULL["a"], "fedavg": FULL["a"]})]).axes[0]
    assert beside.lines[1].get_color() == alone.lines[0].get_color()


def regression(*errors: float) -> Outcome:
    return Outcome([error_point(epoch, value) for epoch, value in enumerate(errors, 1)])


def test_where_lower_is_better_the_axis_says_so_and_cuts_off_a_high_beginning() -> None:
    both = results(
        {"a": {1: regression(900.0, 60.0, 50.0)}, "b": {1: regression(800.0, 70.0, 60.0)}},
        metrics=ERRORS,
    )
    curves = draw_panels(plot_curves, [both]).axes[0]
    assert curves.get_ylabel() == "test rmse, m (lower is better)"
    # The worst end, 60, and 1.5 times the distance of the ends; the best value, 50, and 15% of
    # the distance between the two.
    assert curves.get_ylim() == pytest.approx((50 - 0.15 * 25, 75))
    # The lines begin where they are inside.
    assert [np.isfinite(line.get_ydata()).tolist() for line in curves.lines] == [
        [False, True, True],
        [False, True, True],
    ]


@pytest.mark.filterwarnings("error")
def test_an_arm_without_a_finite_value_at_the_end_is_left_out() -> None:
    both = results(
        {"a": {1: regression(60.0, 50.0)}, "b": {1: regression(70.0, np.nan)}}, metrics=ERRORS
    )
    for plot in (plot_curves, plot_exchanges):
        figure = draw_panels(plot, [both])
        assert all(np.isfinite(figure.axes[0].get_ylim()))
        assert png(figure)


def test_each_comparison_has_a_panel_with_its_name() -> None:
    comparisons = [results(FULL, name=name) for name in ("one", "two", "three")]
    figure = draw_panels(plot_curves, comparisons)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two", "three"]
