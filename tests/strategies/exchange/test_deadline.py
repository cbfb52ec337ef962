"""The deadline of a round: fixed, or learned from the slowest site."""

import math

import pytest

from strategies.exchange.deadline import MIN_DEADLINE_S, Deadline, Pacing

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
        ({"a": 1.0}, 1, MIN_DEADLINE_S),  # 3 would be left to chance
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


def test_below_the_quorum_patience_has_no_end() -> None:
    assert Pacing(LEARNED, quorum=2).patience_s({"a": 10.0}, "b") == math.inf


@pytest.mark.parametrize(
    ("took", "waiting", "seconds"),
    [
        ({"a": 10.0, "b": 30.0}, "c", 90.0),  # 3 * 30 of the slowest that is here
        ({"a": 1.0, "b": 2.0}, "c", MIN_DEADLINE_S),
        ({"a": 10.0, "b": 30.0}, "d", 300.0),  # d usually takes 50 * 2
        ({"a": 10.0, "b": 500.0}, "d", 1000.0),  # 1500 is longer than the longest
        ({"a": 0.0, "b": 0.0}, "", MIN_DEADLINE_S),
    ],
)
def test_with_a_quorum_patience_is_a_multiple_of_what_the_slowest_took_or_usually_takes(
    took: dict[str, float], waiting: str, seconds: float
) -> None:
    pacing = Pacing(LEARNED, quorum=2, pace={"d": 50.0}, work=2)
    assert pacing.patience_s(took, waiting) == pytest.approx(seconds)


def test_a_simulated_site_of_unknown_pace_may_take_ten_times_as_long() -> None:
    pacing = Pacing(LEARNED, quorum=2, pace={"d": 50.0}, simulated=True)
    assert pacing.patience_s({"a": 10.0, "b": 30.0}, "c") == pytest.approx(900.0)
    assert pacing.patience_s({"a": 10.0, "b": 30.0}, "d") == pytest.approx(150.0)


def test_a_deadline_is_learned_from_the_sites_of_the_exchange_alone() -> None:
    pacing = Pacing(LEARNED, pace={"a": 10.0, "gone": 90.0}, work=3)
    assert pacing.seconds(["a", "new"]) == pytest.approx(90.0)
    assert pacing.seconds(["new"]) == 1000.0
