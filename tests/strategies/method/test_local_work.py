"""Local work: the controllers, the horizon, and the relative change."""

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from strategies.method.local_work import (
    Fixed,
    Horizon,
    IncreasedLocalEpochs,
    QuadraticSynchronization,
    Spread,
    WorkController,
    WorkState,
    count_round,
    relative_change,
)

ILE = IncreasedLocalEpochs(initial=5, epsilon=0.01, maximum=40)


def epochs_of(controller: WorkController, changes: Sequence[float | None]) -> list[int]:
    """Return the local epochs of round 1 and of the round after each relative change."""
    state = controller.start()
    epochs = [state.length]
    for change in changes:
        state = controller.after_round(count_round(state, state.length), change)
        epochs.append(state.length)
    return epochs


@pytest.mark.parametrize(
    "controller",
    [Fixed(3), ILE, Spread(20, 6), QuadraticSynchronization(1, 0.3, 0.1, 0.0, 20)],
)
def test_a_controller_that_is_asked_again_without_a_change_leaves_its_state(
    controller: WorkController,
) -> None:
    state = controller.start()
    for change in (0.5, 0.0, 0.001):
        assert controller.after_round(state, None) == state
        state = controller.after_round(count_round(state, state.length), change)
    assert controller.after_round(state, None) == state


def test_fixed_epochs_never_change() -> None:
    assert epochs_of(Fixed(3), [1.0, 0.0, None]) == [3, 3, 3, 3]


def test_ile_starts_at_its_initial_epochs_with_nothing_done() -> None:
    assert ILE.start() == WorkState(length=5, used=0, rounds_done=0)


def test_ile_doubles_in_each_round_that_has_settled_and_in_no_other() -> None:
    assert epochs_of(ILE, [0.5, 0.001, 0.5, 0.002, 0.0]) == [5, 5, 10, 10, 20, 40]


def test_ile_doubles_when_the_change_is_exactly_epsilon_and_not_just_above() -> None:
    above = math.nextafter(0.01, 1.0)
    assert epochs_of(ILE, [0.01]) == [5, 10]
    assert epochs_of(ILE, [above]) == [5, 5]


def test_ile_stops_at_its_maximum_also_when_that_is_no_power_of_two_times_the_initial() -> None:
    assert epochs_of(IncreasedLocalEpochs(5, 0.01, 12), [0.0, 0.0, 0.0]) == [5, 10, 12, 12]


def test_ile_starts_at_its_maximum_when_that_is_below_the_initial() -> None:
    assert epochs_of(IncreasedLocalEpochs(5, 0.01, 3), [0.0]) == [3, 3]


def test_ile_without_a_maximum_doubles_on() -> None:
    assert epochs_of(IncreasedLocalEpochs(5, 0.01, None), [0.0] * 8)[-1] == 5 * 2**8


def test_a_fixed_length_is_that_of_the_controller_not_of_the_state() -> None:
    # Earlier versions stored a number of epochs also for runs in steps.
    state = WorkState(5, used=0, rounds_done=0)
    assert Fixed(100).after_round(state, None) == WorkState(100)


def test_a_failed_round_leaves_ile_as_it_was() -> None:
    assert epochs_of(ILE, [0.0, None, 0.0]) == [5, 10, 10, 20]


@pytest.mark.parametrize("change", [math.inf, math.nan])
def test_a_change_that_is_not_a_number_is_not_a_settled_model(change: float) -> None:
    assert epochs_of(ILE, [change]) == [5, 5]


def test_a_state_cannot_be_changed_behind_a_controllers_back() -> None:
    with pytest.raises(FrozenInstanceError):
        ILE.start().length = 80  # type: ignore[misc]


def test_ile_changes_nothing_but_the_local_epochs() -> None:
    state = WorkState(length=5, used=17, rounds_done=4)
    assert ILE.after_round(state, 0.0) == WorkState(10, used=17, rounds_done=4)


def test_spread_gives_the_rounds_by_hand() -> None:
    # 10 over 4 rounds: floor(10 / 4) = 2, floor(8 / 3) = 2, floor(6 / 2) = 3, and 3 are left.
    assert epochs_of(Spread(10, 4), [0.5, 0.0, None]) == [2, 2, 3, 3]


@pytest.mark.parametrize(("budget", "rounds"), [(10, 4), (60, 7), (7, 7), (100, 1), (41, 40)])
def test_spread_sums_exactly_to_its_budget_in_rounds_that_differ_by_one_at_most(
    budget: int, rounds: int
) -> None:
    epochs = epochs_of(Spread(budget, rounds), [None] * (rounds - 1))
    assert len(epochs) == rounds
    assert sum(epochs) == budget
    assert max(epochs) - min(epochs) <= 1
    assert min(epochs) >= 1


@pytest.mark.parametrize(
    ("budget", "rounds", "epochs"),
    [
        (10, 4, [3, 3]),  # as it was begun: 4 of 10 used in 2 of 4 rounds
        (30, 4, [13, 13]),  # (30 - 4) / 2
        (10, 6, [1, 1, 2, 2]),  # 6 / 4, 5 / 3, 4 / 2, 2
        (10, 3, [6]),
    ],
)
def test_spread_uses_its_budget_up_where_it_or_the_rounds_were_changed_on_the_way(
    budget: int, rounds: int, epochs: list[int]
) -> None:
    controller, found = Spread(budget, rounds), []
    state = controller.after_round(WorkState(2, used=4, rounds_done=2), 0.5)
    while state.rounds_done < rounds:
        found.append(state.length)
        state = controller.after_round(count_round(state, state.length), 0.5)
    assert found == epochs
    assert state.used == budget


def test_spread_has_nothing_to_say_after_its_last_round() -> None:
    state = WorkState(3, used=10, rounds_done=4)
    assert Spread(10, 4).after_round(state, 0.5) == state


def qsr_rounds(base: int, alpha: float, budget: int, lr_min: float = 0.0) -> list[int]:
    """Return the epochs of a whole run with a learning rate from 1 down to ``lr_min``."""
    controller, epochs = QuadraticSynchronization(base, alpha, 1.0, lr_min, budget), []
    state = controller.start()
    while state.used < budget:
        epochs.append(state.length)
        state = controller.after_round(count_round(state, state.length), 0.5)
    return epochs


def test_qsr_gives_the_rounds_by_hand() -> None:
    # Of 12 epochs: lr 1 gives floor(2.56) = 2. At 2 / 12 lr is (1 + cos 30 deg) / 2 = 0.933:
    # floor((1.6 / 0.933)^2 = 2.94) = 2. At 4 / 12 it is 3 / 4: floor(4.55) = 4. At 8 / 12 it is
    # 1 / 4: 40, of which 4 are left.
    assert qsr_rounds(1, 1.6, 12) == [2, 2, 4, 4]


def test_qsr_gives_no_round_less_than_its_base_but_the_last() -> None:
    # Nothing above the base before lr is below 0.5 / sqrt(4): at 6 of 9 epochs it is 1 / 4, and
    # 3 are left.
    assert qsr_rounds(3, 0.5, 9) == [3, 3, 3]
    assert qsr_rounds(4, 0.1, 9) == [4, 4, 1]


def test_a_rate_that_does_not_fall_gives_equal_rounds() -> None:
    assert qsr_rounds(1, 2.0, 10, lr_min=1.0) == [4, 4, 2]


def test_qsr_does_not_look_at_the_model() -> None:
    controller = QuadraticSynchronization(1, 1.6, 1.0, 0.0, 12)
    state = WorkState(2, used=4, rounds_done=2)
    changes: list[float | None] = [0.0, 9.0, math.inf, None]
    assert {controller.after_round(state, change).length for change in changes} == {4}


def test_qsr_has_nothing_to_say_when_the_rate_has_come_to_zero() -> None:
    state = WorkState(4, used=12, rounds_done=4)
    assert QuadraticSynchronization(1, 1.5, 1.0, 0.0, 12).after_round(state, 0.5) == state


@pytest.mark.parametrize(("base", "alpha", "budget"), [(1, 0.3, 60), (2, 1.0, 60), (5, 9.0, 7)])
def test_qsr_uses_its_budget_up_in_rounds_that_never_get_shorter_but_the_last(
    base: int, alpha: float, budget: int
) -> None:
    epochs = qsr_rounds(base, alpha, budget)
    assert sum(epochs) == budget
    assert epochs[:-1] == sorted(epochs[:-1])
    assert min(epochs) >= 1


def test_a_counted_round_adds_its_epochs_and_leaves_the_controllers_wish() -> None:
    state = WorkState(length=8, used=10, rounds_done=2)
    assert count_round(state, 3) == WorkState(length=8, used=13, rounds_done=3)


@pytest.mark.parametrize(
    ("horizon", "used", "done", "finished"),
    [
        (Horizon(3, None), 99, 2, False),
        (Horizon(3, None), 0, 3, True),
        (Horizon(None, 10), 9, 99, False),
        (Horizon(None, 10), 10, 0, True),
        (Horizon(3, 10), 9, 2, False),
        (Horizon(3, 10), 9, 3, True),
        (Horizon(3, 10), 10, 2, True),
        (Horizon(None, None), 10**6, 10**6, False),
    ],
)
def test_a_run_ends_at_whichever_limit_it_reaches_first(
    horizon: Horizon, used: int, done: int, finished: bool
) -> None:
    assert horizon.finished(WorkState(5, used=used, rounds_done=done)) is finished


@pytest.mark.parametrize(
    ("budget", "used", "epochs"), [(None, 99, 8), (20, 0, 8), (20, 12, 8), (20, 13, 7), (20, 19, 1)]
)
def test_the_last_round_is_cut_to_what_is_left_of_the_budget(
    budget: int | None, used: int, epochs: int
) -> None:
    assert Horizon(None, budget).fit(WorkState(8, used=used)) == epochs


def test_a_budget_is_used_up_exactly_by_rounds_that_double() -> None:
    # 3 + 6 + 12 = 21; of the 24 that come next the budget of 30 leaves 9.
    horizon, controller = Horizon(None, 30), IncreasedLocalEpochs(3, 0.01, 100)
    state, epochs = controller.start(), []
    while not horizon.finished(state):
        epochs.append(horizon.fit(state))
        state = controller.after_round(count_round(state, epochs[-1]), 0.0)
    assert epochs == [3, 6, 12, 9]
    assert state.used == 30


def test_the_relative_change_is_one_norm_over_all_named_arrays() -> None:
    # ||(3, 4)|| = 5 over both arrays; only b moves, by 2.5: 2.5 / 5 = 1/2.
    before = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    after = {"a": np.array([3.0]), "b": np.array([[6.5]])}
    assert relative_change(before, after, frozenset({"a", "b"})) == 0.5


def test_the_relative_change_reads_the_named_arrays_only() -> None:
    before = {"w": np.array([4.0]), "running_var": np.array([1.0]), "count": np.array(1)}
    after = {"w": np.array([5.0]), "running_var": np.array([900.0]), "count": np.array(77)}
    assert relative_change(before, after, frozenset({"w"})) == 0.25


def test_the_relative_change_is_the_same_in_both_directions_of_a_move() -> None:
    before, up, down = (np.array([value]) for value in (4.0, 5.0, 3.0))
    names = frozenset({"w"})
    assert relative_change({"w": before}, {"w": up}, names) == 0.25
    assert relative_change({"w": before}, {"w": down}, names) == 0.25


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(2.0, 2.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, math.inf), (1.0, 0.0, 1.0)],
)
def test_the_relative_change_from_and_to_nothing(
    before: float, after: float, change: float
) -> None:
    arrays = {"w": np.array([before])}, {"w": np.array([after])}
    assert relative_change(*arrays, frozenset({"w"})) == change


def test_the_relative_change_of_no_parameters_is_zero() -> None:
    assert relative_change({"w": np.ones(1)}, {"w": np.zeros(1)}, frozenset()) == 0.0


def test_the_relative_change_is_computed_in_float64() -> None:
    # 300^2 = 90000 is beyond float16, whose largest number is 65504.
    before, after = (np.array([value], np.float16) for value in (300.0, 450.0))
    assert relative_change({"w": before}, {"w": after}, frozenset({"w"})) == 0.5
