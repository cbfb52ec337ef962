"""The picture of what each exchange buys: where its points and lines are."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulations.figures.exchanges import plot_exchanges
from simulations.results.outcome import Outcome
from simulations.results.result_files import Results
from tests.simulations.made_up import MEGABYTE, outcome, results

NAMES = {
    "centralized": "centralized",
    "mine-40": "mine, 40 exchanges",
    "mine-10": "mine, 10 exchanges",
    "fedavg": "FedAvg",
}


def reached(mean: float, exchanges: int) -> dict[int, Outcome]:
    """Return results of three seeds around a mean, with a megabyte for each exchange."""
    exchanged = {"exchanges": exchanges, "sent_bytes": exchanges * MEGABYTE}
    return {seed: outcome((4, mean + 0.01 * (seed - 2)), **exchanged) for seed in (1, 2, 3)}


def made() -> Results:
    """Return results in which averaging after every step would take 1,000 exchanges."""
    outcomes = {
        "centralized": reached(0.9, 0),
        "mine-40": reached(0.8, 40),
        "mine-10": reached(0.7, 10),
        "fedavg": reached(0.6, 20),
    }
    one = results(outcomes, list(NAMES.values()))
    arms = [
        arm.model_copy(update={"kind": "centralized" if arm.key == "centralized" else arm.kind})
        for arm in one.facts.arms
    ]
    return one.model_copy(update={"facts": one.facts.model_copy(update={"arms": arms})})


@pytest.fixture
def axes() -> Axes:
    """Return the axes with the picture."""
    axes: Axes = Figure().subplots()
    plot_exchanges(axes, made())
    return axes


def test_arms_with_a_number_at_the_end_are_points_of_one_line(axes: Axes) -> None:
    mine, fedavg = ([[*map(float, of)] for of in bars[0].get_data()] for bars in axes.containers)
    assert mine == [[10, 40], pytest.approx([0.7, 0.8])]
    assert fedavg == [[20], pytest.approx([0.6])]


def test_every_arm_is_named_and_a_line_once(axes: Axes) -> None:
    assert sorted(text.get_text() for text in axes.texts) == ["FedAvg", "centralized", "mine"]


def test_training_without_averaging_is_a_line_at_its_mean(axes: Axes) -> None:
    lines = [np.array(line.get_data()).tolist() for line in axes.lines]
    assert [y for x, y in lines if x == [0, 1]] == [pytest.approx([0.9, 0.9])]


def test_the_axis_goes_to_the_exchanges_of_averaging_after_every_step(axes: Axes) -> None:
    left, right = axes.get_xlim()
    assert left < 10
    assert right > 1000
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert ticks == pytest.approx([10, 20, 40, 1000])
    assert axes.xaxis.get_major_formatter()(1000.0) == "every\nstep"


def test_the_upper_axis_is_the_share_of_those(axes: Axes) -> None:
    (top,) = axes.child_axes
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    low, high = top.get_xlim()
    left, right = axes.get_xlim()
    assert (low, high) == pytest.approx((left / 10, right / 10))


def test_all_seeds_of_all_arms_are_inside(axes: Axes) -> None:
    low, high = axes.get_ylim()
    assert low < 0.59
    assert high > 0.91


def test_an_arm_far_below_is_named_with_its_value_at_the_edge() -> None:
    outcomes = {key: reached(mean, 10) for key, mean in (("a", 0.9), ("b", 0.88), ("c", 0.3))}
    axes: Axes = Figure().subplots()
    plot_exchanges(axes, results(outcomes))
    low, _ = axes.get_ylim()
    assert 0.8 < low < 0.87
    assert sorted(text.get_text() for text in axes.texts) == ["a", "b", "\u2193 c, 30.00"]
