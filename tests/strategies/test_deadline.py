"""The deadline of a round: fixed, or learned from the slowest site."""

import pytest

from strategies.deadline import SHORTEST_S, Deadline

LEARNED = Deadline(factor=3.0, longest_s=1000.0)


def test_a_fixed_deadline_is_the_same_whatever_is_known() -> None:
    fixed = Deadline(fixed_s=7.0, factor=3.0, longest_s=1.0)
    assert [fixed.seconds(pace, 5) for pace in ({}, {"a": 100.0})] == [7.0, 7.0]


def test_before_anything_is_known_the_longest_deadline_holds() -> None:
    assert LEARNED.seconds({}, 5) == 1000.0


@pytest.mark.parametrize(
    ("pace", "work", "seconds"),
    [
        ({"a": 10.0, "b": 20.0}, 5, 300.0),  # 3 * 20 * 5: the slowest counts
        ({"a": 10.0, "b": 20.0}, 10, 600.0),  # twice the work, twice the time
        ({"a": 1.0}, 1, SHORTEST_S),  # 3 would be left to chance
        ({"a": 20.1}, 1, 3 * 20.1),
        ({"a": 100.0}, 5, 1000.0),  # 1500 is longer than the longest
    ],
)
def test_a_learned_deadline_is_a_multiple_of_the_slowest_sites_usual_time(
    pace: dict[str, float], work: int, seconds: float
) -> None:
    assert LEARNED.seconds(pace, work) == pytest.approx(seconds)


def test_the_longest_deadline_also_goes_before_the_shortest() -> None:
    assert Deadline(longest_s=30.0).seconds({"a": 1.0}, 1) == 30.0
