"""What became of each site in each round."""

from typing import Any

import pytest

from mdc_flower.reports.participation import (
    Incident,
    SiteOutcome,
    draw_participation,
    incidents,
    outcomes,
)
from tests.mdc_flower.reports.lines import line

SITES = ["a", "b", "c", "d"]


def round_of(number: int, **fields: Any) -> dict[str, Any]:
    return {**line(number), "participants": {}, **fields}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"participants": {"a": {}}}, SiteOutcome.TOOK_PART),
        ({"participants": {"a": {}}, "asked_again": ["a"]}, SiteOutcome.ASKED_AGAIN),
        ({"dropped": {"a": "odd"}}, SiteOutcome.DROPPED),
        ({"dropped": {"a": "odd"}, "asked_again": ["a"]}, SiteOutcome.DROPPED),
        # Its update counts, though its evaluation does not.
        ({"participants": {"a": {}}, "dropped": {"a": "evaluation: odd"}}, SiteOutcome.TOOK_PART),
        ({"missing": ["a"]}, SiteOutcome.MISSING),
        ({}, SiteOutcome.UNKNOWN),
    ],
)
def test_what_became_of_a_site(fields: dict[str, Any], expected: SiteOutcome) -> None:
    assert outcomes([round_of(1, **fields)], ["a"]) == {(1, "a"): expected}


def test_a_late_reply_stands_at_the_round_that_it_is_of() -> None:
    history = [
        round_of(1, dropped={"a": "no reply"}),
        round_of(2, participants={"a": {}}, late={"a": 1}),
    ]
    assert outcomes(history, ["a"]) == {(1, "a"): SiteOutcome.LATE, (2, "a"): SiteOutcome.TOOK_PART}


def test_the_grid_has_a_place_for_each_site_and_names_only_what_happened() -> None:
    history = [
        round_of(1, participants={"a": {}, "b": {}}, missing=["c"], dropped={"d": "odd"}),
        round_of(2, failed=True, participants={"a": {}}),
    ]
    figure = draw_participation(history, SITES)
    (axes,) = figure.axes
    points = {
        str(one.get_label()): sorted(
            zip(map(int, one.get_xdata()), map(int, one.get_ydata()), strict=True)  # type: ignore[arg-type]
        )
        for one in axes.lines
    }
    assert points == {
        "took part": [(1, 0), (1, 1), (2, 0)],
        "dropped": [(1, 3)],
        "not online": [(1, 2)],
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == SITES
    assert len(axes.patches) == 1  # the failed round


def test_all_that_went_wrong_is_listed_in_its_order() -> None:
    history = [
        round_of(1, participants={site: {} for site in SITES}),
        round_of(
            2,
            attempts=3,
            failed=True,
            dropped={"b": "odd"},
            missing=["c"],
            asked_again=["d"],
            late={"a": 1},
        ),
    ]
    assert incidents(history) == [
        Incident(2, "", "repeated", "3 attempts"),
        Incident(2, "", "failed", "too few updates: the run ended here"),
        Incident(2, "b", "dropped", "odd"),
        Incident(2, "c", "not online"),
        Incident(2, "d", "asked again"),
        Incident(2, "a", "answered too late", "reply to round 1"),
    ]
