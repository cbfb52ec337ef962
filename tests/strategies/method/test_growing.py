"""Growing rounds: one factor, the whole budget, and a rule that needs no memory."""

import itertools

import pytest

from strategies.method.growing import Growing
from strategies.method.local_work import WorkState, count_round


def lengths(rule: Growing, state: WorkState | None = None) -> list[int]:
    """Return the length of each round that is left."""
    state, found = state or rule.start(), []
    while state.rounds_done < rule.num_rounds and state.used < rule.budget:
        found.append(state.length)
        state = rule.after_round(count_round(state, state.length), None)
    return found


def test_rounds_that_multiply_use_up_a_budget_that_allows_exactly_that() -> None:
    assert lengths(Growing(1, 31, 5)) == [1, 2, 4, 8, 16]
    assert lengths(Growing(3, 120, 4)) == [3, 9, 27, 81]


def test_rounds_that_cannot_grow_are_equal() -> None:
    assert lengths(Growing(6, 24, 4)) == [6, 6, 6, 6]


def test_a_single_round_gets_the_budget() -> None:
    assert lengths(Growing(2, 50, 1)) == [50]


@pytest.mark.parametrize("first", [1, 8, 24, 95, 400])
@pytest.mark.parametrize(
    ("budget", "num_rounds"), [(8088, 20), (24000, 40), (1512, 3), (60000, 80)]
)
def test_any_budget_is_used_up_to_the_unit_by_rounds_of_one_factor(
    first: int, budget: int, num_rounds: int
) -> None:
    rule = Growing(first, budget, num_rounds)
    found = lengths(rule)
    assert (found[0], sum(found), len(found)) == (first, budget, num_rounds)
    for earlier, later in itertools.pairwise(found):
        assert later == pytest.approx(rule.factor * earlier, abs=1 + rule.factor)


def test_a_state_that_is_asked_again_stays_as_it_is() -> None:
    rule = Growing(10, 5000, 12)
    state = rule.start()
    assert rule.after_round(state, None) == state
    for _ in range(12):
        state = rule.after_round(count_round(state, state.length), 0.5)
        assert rule.after_round(state, None) == state


def test_a_budget_that_changes_on_the_way_is_used_up_all_the_same() -> None:
    begun = lengths(Growing(10, 1000, 10))[:4]
    state = WorkState(0, used=sum(begun), rounds_done=4)
    for budget, num_rounds in ((2000, 10), (500, 10), (1000, 16), (1000, 6)):
        rule = Growing(10, budget, num_rounds)
        rest = lengths(rule, rule.after_round(state, None))
        assert (sum(begun) + sum(rest), 4 + len(rest)) == (budget, num_rounds)
        assert rest == sorted(rest)


def test_the_end_of_the_run_changes_nothing() -> None:
    rule, over = Growing(1, 31, 5), WorkState(16, used=31, rounds_done=5)
    assert rule.after_round(over, 0.1) == over
