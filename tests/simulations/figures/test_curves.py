"""The pictures of a comparison."""

import numpy as np
import pytest

from mdc_flower.reports.plotting import png
from simulations.figures.curves import plot_curves, plot_frontier
from simulations.figures.panels import draw_panels
from simulations.results.outcome import Outcome
from tests.simulations.made_up import ERRORS, MEGABYTE, error_point, outcome, results

FULL = {"a": {1: outcome((2, 0.5), (4, 0.9)), 2: outcome((2, 0.4), (4, 0.8))}}
EXCHANGED = {"round": 2, "sent_bytes": MEGABYTE, "received_bytes": MEGABYTE}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("b", "lines"),
    [
        (
            {1: outcome((1, 0.6), (4, 0.85)), 2: outcome((1, 0.5), (4, 0.7))},
            [[1, 0.55], [4, 0.775]],
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


@pytest.mark.parametrize(
    ("highlight", "named"), [([], {"a", "b"}), (["b"], {"b"})], ids=["all", "one"]
)
def test_arms_are_named_if_they_are_to_be(highlight: list[str], named: set[str]) -> None:
    both = results({**FULL, "b": FULL["a"]}, highlight=highlight)
    curves, frontier = (draw_panels(plot, [both]).axes[0] for plot in (plot_curves, plot_frontier))
    assert {text.get_text() for text in curves.texts} == named
    assert {text.get_text() for text in frontier.get_legend().get_texts()} == named  # type: ignore[union-attr]
    assert len(curves.lines) == 2, "the others are drawn as well"


def test_the_frontier_has_a_point_for_what_exchanges_and_a_line_for_what_does_not() -> None:
    b = {seed: outcome((4, 0.8), **EXCHANGED) for seed in (1, 2)}
    axes = draw_panels(plot_frontier, [results({**FULL, "b": b})]).axes[0]
    places = [np.array(line.get_data(), dtype=np.float64).T for line in axes.lines]
    # Means: 0.85 for what exchanges nothing, and 0.8 at 2 MB.
    assert any(np.allclose(place[:, 1], 0.85) and len(place) == 2 for place in places)
    assert any(np.allclose(place, [[2.0, 0.8]]) for place in places if len(place) == 1)


def regression(*errors: float) -> Outcome:
    return Outcome([error_point(epoch, value) for epoch, value in enumerate(errors, 1)])


def test_where_lower_is_better_the_axis_says_so_and_cuts_off_a_high_beginning() -> None:
    both = results(
        {"a": {1: regression(900.0, 60.0, 50.0)}, "b": {1: regression(800.0, 70.0, 60.0)}},
        metrics=ERRORS,
    )
    curves, frontier = (draw_panels(plot, [both]).axes[0] for plot in (plot_curves, plot_frontier))
    assert curves.get_ylabel() == frontier.get_ylabel() == "test rmse, m (lower is better)"
    # The worst end, 60, and 1.5 times the distance of the ends; the best value, 50, and 15% of
    # the distance between the two.
    assert curves.get_ylim() == pytest.approx((50 - 0.15 * 25, 75))
    low, high = frontier.get_ylim()
    assert low < 50 < 60 < high < 70


@pytest.mark.filterwarnings("error")
def test_an_arm_without_a_finite_value_at_the_end_is_left_out() -> None:
    both = results(
        {"a": {1: regression(60.0, 50.0)}, "b": {1: regression(70.0, np.nan)}}, metrics=ERRORS
    )
    for plot in (plot_curves, plot_frontier):
        figure = draw_panels(plot, [both])
        assert all(np.isfinite(figure.axes[0].get_ylim()))
        assert png(figure)


def test_each_comparison_has_a_panel_with_its_name() -> None:
    comparisons = [results(FULL, name=name) for name in ("one", "two", "three")]
    figure = draw_panels(plot_frontier, comparisons)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two", "three"]
