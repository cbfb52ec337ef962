"""Comparisons side by side."""

from simulations.figures import plot_curves, plot_frontier
from simulations.panels import draw_panels
from tests.simulations.made_up import MEGABYTE, outcome, results


def test_each_comparison_has_a_panel_with_its_name() -> None:
    sent = {"sent_bytes": MEGABYTE, "received_bytes": MEGABYTE}
    outcomes = {"a": {1: outcome((2, 0.5), **sent)}, "b": {1: outcome((2, 0.6), **sent)}}
    comparisons = [results(outcomes, name=name) for name in ("one", "two", "three")]
    for plot in (plot_curves, plot_frontier):
        figure = draw_panels(plot, comparisons)
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two", "three"]
        assert figure.get_size_inches().tolist() == [2 * 5.8, 2 * 3.8]
