"""Pictures of schedules: learning rates as the plans have them, and where a model settled."""

from typing import Any

import numpy as np
import pytest

from mdc_flower.reports.plotting import png
from simulations.figures.schedules import (
    cycle_plans,
    draw_cycles,
    draw_learning_rates,
    draw_settling,
    outcome_plans,
)
from simulations.results.outcome import Outcome
from simulations.results.result_files import ArmFacts, Results
from strategies.common.errors import ConfigError
from tests.simulations.made_up import point, results

CONFIG: dict[str, Any] = {
    "lr-min-fraction": 0.5,
    "lr-shape": "exponential",
    "local-steps": 0,
    "ile-epsilon": 0.1,
}
ROUNDS = Outcome(
    [
        point(2, 0.5, round=1, local_epochs=2, lr_max=0.4, relative_change=0.3),
        point(4, 0.6, round=2, local_epochs=2, lr_max=0.2, relative_change=0.1),
        point(8, 0.7, round=3, local_epochs=4, lr_max=0.1, relative_change=0.2),
    ]
)


def arm(kind: str = "federated", **changes: Any) -> ArmFacts:
    keys = {key.replace("_", "-"): value for key, value in changes.items()}
    return ArmFacts(key="a", name="A", kind=kind, config={**CONFIG, **keys}, per_step_bytes=1)


def comparison() -> Results:
    return results({"a": {1: ROUNDS, 2: ROUNDS}}, arms=[arm()], name="letters, 2 sites")


def test_a_cycle_starts_anew_each_round() -> None:
    plans = cycle_plans("exponential", lr_max=0.4, num_rounds=3, epochs=2)
    assert [plan.lr_at(0) for plan in plans] == [0.4] * 3
    assert [plan.lr_at(1) for plan in plans] == pytest.approx([0.1] * 3)
    assert [plan.local_epochs for plan in plans] == [2, 2, 2]


def test_the_global_cosine_goes_on_from_round_to_round() -> None:
    first, second = cycle_plans("global-cosine", lr_max=0.4, num_rounds=2, epochs=2)
    # From 0.4 to a quarter of it, 0.1: half way down, at 0.25, after half of the run.
    assert first.lr_at(0) == 0.4
    assert first.lr_at(1) == pytest.approx(0.25)
    assert second.lr_at(0) == pytest.approx(0.25)
    assert second.lr_at(1) == pytest.approx(0.1)


def test_a_runs_plans_are_those_of_its_points() -> None:
    plans = outcome_plans(arm(), ROUNDS)
    assert [plan.local_epochs for plan in plans] == [2, 2, 4]
    assert [plan.lr_max for plan in plans] == [0.4, 0.2, 0.1]
    assert [plan.lr_min for plan in plans] == [0.2, 0.1, 0.05]
    assert [(plan.run_start, plan.run_end) for plan in plans] == [(0, 0.25), (0.25, 0.5), (0.5, 1)]


def test_a_round_that_ends_within_an_epoch_has_its_length_in_parts() -> None:
    points = [point(0.25, 0.5, local_epochs=0.25), point(2, 0.6, local_epochs=1.75)]
    plans = outcome_plans(arm(), Outcome(points))
    assert [plan.local_parts for plan in plans] == [250, 1750]
    assert [plan.run_end for plan in plans] == [0.125, 1]


def test_without_exchange_the_whole_run_is_one_cycle() -> None:
    whole = Outcome([point(4, 0.5, local_epochs=4), point(8, 0.6, local_epochs=8)])
    (plan,) = outcome_plans(arm("centralized", lr_shape="cosine"), whole)
    assert (plan.local_epochs, plan.run_start, plan.run_end) == (8, 0, 1)


def test_rounds_that_are_counted_in_steps_have_no_such_plans() -> None:
    with pytest.raises(ConfigError, match="counted in steps"):
        outcome_plans(arm(local_steps=100), ROUNDS)


@pytest.mark.filterwarnings("error")
def test_learning_rates_are_drawn_by_shape_and_by_arm() -> None:
    figure = draw_cycles(["exponential", "constant"], lr_max=0.4, num_rounds=3, epochs=2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["exponential", "constant"]
    assert png(figure)
    figure = draw_learning_rates(comparison(), ["a", "not-compared"], seed=1)
    assert figure.axes[0].get_title(loc="left") == "A: 3 rounds of 2 to 4 epochs"
    assert png(figure)


def test_the_highest_learning_rate_of_any_arm_is_inside_the_picture() -> None:
    quiet = Outcome([point(2, 0.5, round=1, local_epochs=2, lr_max=0.01)])
    arms = [arm().model_copy(update={"key": key}) for key in ("b", "a")]
    both = results({"b": {1: quiet}, "a": {1: ROUNDS}}, arms=arms)
    figure = draw_learning_rates(both, ["b", "a"], seed=1)
    assert [axes.get_ylim()[1] > 0.4 for axes in figure.axes] == [True, True]


def test_settled_rounds_are_filled_and_the_epochs_are_below() -> None:
    without = results({"b": {1: ROUNDS}})
    figure = draw_settling([without, comparison()], arm="a")
    change, epochs = figure.axes
    markers = [line for line in change.lines if line.get_marker() == "o"]
    settled = [m.get_xdata() for m in markers if m.get_markerfacecolor() != "white"]
    assert np.asarray(settled).tolist() == [[4.0], [4.0]], "in round 2, with both seeds"
    assert epochs.get_yticks().tolist() == [2, 4]
    assert png(figure)
