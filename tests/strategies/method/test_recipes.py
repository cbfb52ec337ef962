"""Recipes: the plan of each round for a given method and state."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from strategies.aggregation.averaging import by_examples, uniform
from strategies.aggregation.outer_optimizers import Adam, Average, Momentum
from strategies.method.growing import Growing
from strategies.method.local_work import (
    Fixed,
    Horizon,
    IncreasedLocalEpochs,
    QuadraticSynchronization,
    Spread,
    WorkController,
    WorkState,
    count_round,
)
from strategies.method.recipes import (
    LrSchedule,
    PeakShape,
    Recipe,
    annealed_co_learning,
    co_learning,
    diloco,
    fedadam,
    fedavg,
    fedavgm,
    fedprox,
    qsr,
)
from strategies.method.round_plan import RoundPlan


def plans_of(recipe: Recipe, change: float | None = 1.0, limit: int = 50) -> list[RoundPlan]:
    """Return the plans of a whole run with the same relative change in every round."""
    state = recipe.controller.start()
    plans: list[RoundPlan] = []
    while not recipe.horizon.finished(state) and len(plans) < limit:
        plans.append(recipe.plan(state, seed=7))
        length = recipe.length(state)
        state = recipe.controller.after_round(count_round(state, length), change)
    return plans


def recipe(controller: WorkController, horizon: Horizon, **changes: Any) -> Recipe:
    return replace(Recipe(LrSchedule(1.0, 0.25, "cosine"), controller, horizon), **changes)


def test_a_plan_carries_every_part_of_the_recipe() -> None:
    # Round 3: the peak is 0.5 * 0.5^2 = 1/8, the lowest rate a quarter of that, 1/32; 4 of 16
    # epochs are used, and 2 more make 6.
    method = Recipe(
        schedule=LrSchedule(0.5, 0.25, "linear", lr_max_decay=0.5),
        controller=Fixed(2),
        horizon=Horizon(None, 16),
        proximal_mu=0.1,
    )
    assert method.plan(WorkState(2, used=4, rounds_done=2), seed=7) == RoundPlan(
        round=3,
        local_epochs=2,
        local_steps=0,
        steps_before=0,
        lr_max=1 / 8,
        lr_min=1 / 32,
        shape="linear",
        run_start=4 / 16,
        run_end=6 / 16,
        seed=7,
        proximal_mu=0.1,
    )


def test_without_decay_the_peak_is_the_same_in_every_round() -> None:
    schedule = LrSchedule(0.1)
    assert [schedule.peak(rounds) for rounds in (0, 1, 100)] == [0.1, 0.1, 0.1]


def test_a_peak_that_decays_does_so_by_one_factor_a_round() -> None:
    schedule = LrSchedule(1.0, lr_max_decay=0.5)
    assert [schedule.peak(rounds) for rounds in range(4)] == [1.0, 0.5, 0.25, 0.125]


# After 0, 1/4, 1/2 and 3/4 of the run: (1 + cos 45 deg) / 2 = (2 + sqrt 2) / 4, and so on.
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
    ],
)
def test_peaks_lie_on_a_curve_over_the_work_of_the_run(
    shape: PeakShape, expected: list[float]
) -> None:
    schedule = LrSchedule(1.0, 0.25, "exponential", peak_shape=shape)
    plans = plans_of(recipe(Fixed(4), Horizon(None, 16), schedule=schedule))
    assert [plan.lr_max for plan in plans] == pytest.approx(expected, rel=1e-15)
    ends = [peak / 4 for peak in expected]  # every cycle falls to a quarter of its own peak
    assert [plan.lr_at(1) for plan in plans] == pytest.approx(ends, rel=1e-15)


def test_the_peak_of_a_long_round_is_that_of_its_beginning() -> None:
    # ILE doubles: 3, 6 and 7 of 16 epochs; the last one begins at 9/16.
    schedule = LrSchedule(1.0, peak_shape="linear")
    method = recipe(IncreasedLocalEpochs(3, 1.0, 99), Horizon(None, 16), schedule=schedule)
    assert [plan.lr_max for plan in plans_of(method)] == [1.0, 13 / 16, 7 / 16]


def test_a_peak_that_falls_on_a_curve_decays_as_well_if_told_to() -> None:
    schedule = LrSchedule(1.0, lr_max_decay=0.5, peak_shape="linear")
    method = recipe(Fixed(1), Horizon(4, None), schedule=schedule)
    assert [plan.lr_max for plan in plans_of(method)] == [1.0, 3 / 8, 1 / 8, 1 / 32]


def outer_of_each_round(method: Recipe) -> list[Any]:
    """Return the outer optimizer of each round of a run in which no model settles."""
    state, found = method.controller.start(), []
    while not method.horizon.finished(state):
        found.append(method.outer_of(state))
        counted = count_round(state, method.length(state))
        state = method.controller.after_round(counted, 1.0)
    return found


@pytest.mark.parametrize(
    ("controller", "horizon", "rounds"),
    [
        (Fixed(2), Horizon(4, None), 4),
        (Fixed(2), Horizon(9, 7), 4),  # the budget ends it first
        (Spread(10, 4), Horizon(4, 10), 4),
        (Growing(2, 20, 5), Horizon(5, 20), 5),
        (QuadraticSynchronization(1, 1.6, 1.0, 0.0, 12), Horizon(None, 12), 4),
        (IncreasedLocalEpochs(3, 0.0, 9), Horizon(None, 12), 4),
    ],
)
@pytest.mark.parametrize("plain", [0, 1, 2, 9])
def test_the_last_rounds_are_averaged_plainly(
    controller: WorkController, horizon: Horizon, rounds: int, plain: int
) -> None:
    outer = Momentum(1.0, 0.5, nesterov=True)
    method = recipe(controller, horizon, outer=outer, plain_last=plain)
    last = min(plain, rounds)
    assert outer_of_each_round(method) == [outer] * (rounds - last) + [Average()] * last


def test_annealed_co_learning_grows_its_rounds_and_lets_its_peaks_fall_to_zero() -> None:
    method = annealed_co_learning(4, num_rounds=8, lr_max=0.1, first_epochs=0.1)
    plans = plans_of(method)
    lengths = [plan.local_parts for plan in plans]
    assert (lengths[0], sum(lengths), len(lengths)) == (100, 4000, 8)
    assert lengths == sorted(lengths)
    assert [plan.parts_before for plan in plans] == [0, *itertools.accumulate(lengths)][:-1]
    assert {(plan.local_epochs, plan.local_steps) for plan in plans} == {(0, 0)}
    peaks = [plan.lr_max for plan in plans]
    assert peaks[0] == 0.1
    assert peaks[-1] < 0.03
    assert all(later < earlier for earlier, later in itertools.pairwise(peaks))
    # 1 - sqrt(2 / 8) = 1/2.
    assert outer_of_each_round(method) == [Momentum(1.0, 0.5, nesterov=True)] * 7 + [Average()]


def test_unless_told_otherwise_a_cycle_falls_exponentially_to_a_quarter_of_its_peak() -> None:
    (plan,) = plans_of(Recipe(LrSchedule(1.0), Fixed(1), Horizon(1, None)))
    assert [plan.lr_at(progress) for progress in (0, 0.5, 1)] == [1.0, 0.5, 0.25]
    method = co_learning(1, lr_max=1.0, initial_epochs=1, epsilon=0.01, max_epochs=8)
    assert [cycle.lr_at(1) for cycle in plans_of(method)] == [0.25]


def test_rounds_are_numbered_from_one() -> None:
    assert [plan.round for plan in plans_of(fedavg(3, 5, 0.1))] == [1, 2, 3]


def test_the_last_round_gets_what_is_left_of_the_budget() -> None:
    plans = plans_of(recipe(Fixed(4), Horizon(None, 10)))
    assert [plan.local_epochs for plan in plans] == [4, 4, 2]


def test_a_method_in_steps_sends_steps_and_no_epochs() -> None:
    plans = plans_of(recipe(Fixed(100), Horizon(2, None), unit="steps"))
    assert [(plan.local_steps, plan.local_epochs) for plan in plans] == [(100, 0), (100, 0)]


@pytest.mark.parametrize(
    ("controller", "horizon", "steps"),
    [
        (Fixed(4), Horizon(None, 10), [4, 4, 2]),
        (Fixed(4), Horizon(2, None), [4, 4]),
        (IncreasedLocalEpochs(3, 1.0, None), Horizon(None, 30), [3, 6, 12, 9]),
        (IncreasedLocalEpochs(3, 1.0, 6), Horizon(None, 20), [3, 6, 6, 5]),
        (Spread(10, 4), Horizon(4, 10), [2, 2, 3, 3]),
        # As in the test of the rule by hand, from a rate of 1.
        (QuadraticSynchronization(1, 1.6, 1.0, 0.0, 12), Horizon(None, 12), [2, 2, 4, 4]),
    ],
)
def test_in_steps_every_rule_gives_the_rounds_that_it_gives_in_epochs_and_their_place(
    controller: WorkController, horizon: Horizon, steps: list[int]
) -> None:
    in_epochs = plans_of(recipe(controller, horizon))
    in_steps = plans_of(recipe(controller, horizon, unit="steps"))
    assert [plan.local_epochs for plan in in_epochs] == steps
    assert [plan.local_steps for plan in in_steps] == steps
    assert {plan.local_epochs for plan in in_steps} == {0}
    assert {plan.steps_before for plan in in_epochs} == {0}
    # A stream goes on where it ended: without gap or overlap, however long the rounds are.
    places = [0, *itertools.accumulate(steps)][:-1]
    assert [plan.steps_before for plan in in_steps] == places
    shares = [[(plan.run_start, plan.run_end) for plan in run] for run in (in_epochs, in_steps)]
    assert shares[0] == shares[1]


@pytest.mark.parametrize(
    ("method", "shares"),
    [
        # By rounds, where these are the only limit.
        (recipe(IncreasedLocalEpochs(1, 0.0, 9), Horizon(4, None)), [0, 1 / 4, 1 / 2, 3 / 4, 1]),
        # By epochs, where a budget is: 4, 4 and 2 of 10.
        (recipe(Fixed(4), Horizon(None, 10)), [0, 4 / 10, 8 / 10, 1]),
        # 3 + 6 + 7 of 16.
        (recipe(IncreasedLocalEpochs(3, 1.0, 99), Horizon(None, 16)), [0, 3 / 16, 9 / 16, 1]),
        (recipe(Spread(10, 4), Horizon(4, 10)), [0, 2 / 10, 4 / 10, 7 / 10, 1]),
        # Fixed epochs under both limits: the rounds end it after 8 of the 100 epochs,
        (recipe(Fixed(4), Horizon(2, 100)), [0, 1 / 2, 1]),
        # or the budget after 10 of the 40.
        (recipe(Fixed(4), Horizon(10, 10)), [0, 4 / 10, 8 / 10, 1]),
        # In steps as in epochs: 3 + 6 + 7 of 16.
        (
            recipe(IncreasedLocalEpochs(3, 1.0, None), Horizon(None, 16), unit="steps"),
            [0, 3 / 16, 9 / 16, 1],
        ),
    ],
)
def test_the_rounds_divide_the_run_without_gap_or_overlap(
    method: Recipe, shares: list[float]
) -> None:
    plans = plans_of(method)
    assert [plan.run_start for plan in plans] == shares[:-1]
    assert [plan.run_end for plan in plans] == shares[1:]


def test_a_run_without_a_limit_has_no_shares() -> None:
    first = recipe(Fixed(4), Horizon(None, None)).plan(WorkState(4), seed=7)
    assert (first.run_start, first.run_end) == (0.0, 1.0)


@pytest.mark.parametrize(
    "method",
    [
        recipe(Fixed(3), Horizon(7, None)),
        recipe(Fixed(4), Horizon(None, 10)),
        recipe(IncreasedLocalEpochs(3, 1.0, 99), Horizon(None, 16)),
    ],
)
def test_a_global_cosine_falls_from_the_peak_to_the_lowest_over_the_run_without_a_step(
    method: Recipe,
) -> None:
    plans = plans_of(replace(method, schedule=LrSchedule(1.0, 0.25, "global-cosine")))
    assert plans[0].lr_at(0) == 1.0
    assert plans[-1].lr_at(1) == 0.25
    for earlier, later in itertools.pairwise(plans):
        assert later.lr_at(0) == pytest.approx(earlier.lr_at(1), rel=1e-15)


def test_the_default_weighting_is_by_examples() -> None:
    assert recipe(Fixed(1), Horizon(1, None)).weighting is by_examples
    assert recipe(Fixed(1), Horizon(1, None), weighting=uniform).weighting is uniform


def test_fedavg_sends_the_same_epochs_and_one_learning_rate_in_every_round() -> None:
    plans = plans_of(fedavg(num_rounds=4, local_epochs=5, lr=0.1))
    assert [plan.local_epochs for plan in plans] == [5, 5, 5, 5]
    assert {plan.lr_at(progress) for plan in plans for progress in (0, 0.3, 1)} == {0.1}
    assert {plan.proximal_mu for plan in plans} == {0.0}


def test_co_learning_resets_its_cycle_every_round_and_doubles_once_settled() -> None:
    method = co_learning(16, lr_max=0.5, initial_epochs=2, epsilon=0.01, max_epochs=8)
    plans = plans_of(method, change=0.01)
    assert [plan.local_epochs for plan in plans] == [2, 4, 8, 2]
    assert [(plan.lr_at(0), plan.lr_at(0.5), plan.lr_at(1)) for plan in plans] == [
        (0.5, 0.25, 0.125)
    ] * 4


def test_co_learning_that_never_settles_keeps_its_epochs() -> None:
    method = co_learning(6, lr_max=0.5, initial_epochs=2, epsilon=0.01, max_epochs=8)
    assert [plan.local_epochs for plan in plans_of(method, change=0.02)] == [2, 2, 2]


def test_qsr_follows_the_learning_rate_that_the_sites_are_told() -> None:
    method = qsr(60, lr=0.4, base_epochs=2, alpha=0.5)
    plans = plans_of(method)
    assert sum(plan.local_epochs for plan in plans) == 60
    assert plans[0].lr_at(0) == 0.4
    assert plans[-1].lr_at(1) == 0.0
    for plan in plans[:-1]:
        assert plan.local_epochs == max(2, int((0.5 / plan.lr_at(0)) ** 2))
    lengths = [plan.local_epochs for plan in plans]
    assert max(lengths[:-1]) > 2, "the rule was at work"


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (fedprox(4, 5, 0.1, mu=0.01), {"proximal_mu": 0.01}),
        (fedavgm(4, 5, 0.1, momentum=0.8), {"outer": Momentum(1.0, 0.8)}),
        (fedadam(4, 5, 0.1, outer_lr=0.02), {"outer": Adam(0.02)}),
    ],
)
def test_each_of_these_is_fedavg_but_for_one_thing(method: Recipe, changes: dict[str, Any]) -> None:
    assert method == replace(fedavg(4, 5, 0.1), **changes)


def test_diloco_does_many_steps_under_one_cosine_and_nesterovs_momentum_outside() -> None:
    method = diloco(num_rounds=2, local_steps=500, lr=4e-4)
    plans = plans_of(method)
    assert [(plan.local_steps, plan.local_epochs) for plan in plans] == [(500, 0), (500, 0)]
    assert [plans[0].lr_at(0), plans[1].lr_at(1)] == [4e-4, 0.0]
    assert plans[0].lr_at(1) == plans[1].lr_at(0) == pytest.approx(2e-4)
    assert method.outer == Momentum(0.7, 0.9, nesterov=True)
    assert method.weighting is uniform


def test_unless_told_otherwise_the_mean_is_the_next_model() -> None:
    methods = [recipe(Fixed(1), Horizon(1, None)), fedavg(1, 1, 0.1), co_learning(9, 1, 1, 0, 9)]
    assert [method.outer for method in methods] == [Average()] * 3


def test_the_seed_of_the_run_stands_in_the_plan() -> None:
    assert fedavg(1, 1, 0.1).plan(WorkState(1), seed=-3).seed == -3
