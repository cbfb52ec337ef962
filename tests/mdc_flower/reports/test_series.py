"""The work behind each round, and the curves of a history."""

import math
from typing import Any

import pytest

from mdc_flower.reports.series import metric_series, site_scores, sites_of, work_done
from tests.mdc_flower.reports.lines import by_sites, line


# Epochs 2, 2 and 4: 2, 4 and 8 behind the model. A failed round's work was done too.
@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], []),
        ([line(1, local_epochs=2), line(2, local_epochs=2), line(3, local_epochs=4)], [2, 4, 8]),
        ([line(1, local_epochs=1), line(2, None, local_epochs=2)], [1, 3]),
        ([line(1, local_steps=100), line(2, local_steps=50)], [100, 150]),
        # In thousandths of an epoch, whose sum is exact.
        ([line(n, local_epochs=0, local_parts=p) for n, p in ((1, 95), (2, 905))], [0.095, 1]),
    ],
)
def test_work_adds_up_over_the_rounds(history: list[dict[str, Any]], expected: list[int]) -> None:
    assert work_done(history) == expected


# Epochs 2, 2 and 4 end at 2, 4 and 8. A round's own model has its score from the next round.
@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], {}),
        ([line(1)], {}),  # written by a version that did not know it
        ([line(1, local_epochs=2) | by_sites(0.1)], {0: 0.1}),
        (
            [
                line(1, local_epochs=2) | by_sites(0.1),
                line(2, local_epochs=2) | by_sites(0.5),
                line(3, local_epochs=4) | by_sites(0.7, 0.9),
            ],
            {0: 0.1, 2: 0.5, 4: 0.7, 8: 0.9},
        ),
        (  # went on after its end: the last model was evaluated then, and at the start
            [
                line(1, local_epochs=2) | by_sites(0.1, 0.5),
                line(2, local_epochs=2) | by_sites(0.5, 0.6),
            ],
            {0: 0.1, 2: 0.5, 4: 0.6},
        ),
        (  # kept back in one round
            [line(1, local_epochs=2) | by_sites(), line(2, local_epochs=2) | by_sites(0.5)],
            {2: 0.5},
        ),
        (  # a failed round has no model of its own; the one it started from was evaluated
            [
                line(1, local_epochs=2) | by_sites(0.1),
                line(2, None, local_epochs=2) | by_sites(0.5),
            ],
            {0: 0.1, 2: 0.5},
        ),
        ([line(1, local_steps=100) | by_sites(0.1, 0.9)], {0: 0.1, 100: 0.9}),
    ],
    ids=["empty", "old", "one", "three", "resumed", "kept-back", "failed", "steps"],
)
def test_the_sites_scores_stand_at_the_work_behind_the_model_they_are_of(
    history: list[dict[str, Any]], expected: dict[int, float]
) -> None:
    assert site_scores(history) == expected


def curves(history: list[dict[str, Any]], metric: str) -> dict[str, list[tuple[float, float]]]:
    return {
        curve.name: list(zip(curve.done, curve.values, strict=True))
        for curve in metric_series(history, metric)
    }


def test_a_curve_is_there_if_anything_of_it_is_known() -> None:
    both = {"evaluation": {"test-accuracy": 0.5, "test-loss": 1.5}}
    sites = {
        "participants": {
            "a": {"train-accuracy": 0.25, "train-loss": 2.0},
            "b": {"train-accuracy": 0.75},
            "c": {"num-examples": 3},
        }
    }
    history = [line(1, local_epochs=2) | both | sites]
    # Of the two sites that say so: (0.25 + 0.75) / 2; of the one that says so: 2.0.
    assert curves(history, "accuracy") == {"test": [(2, 0.5)], "sites, training": [(2, 0.5)]}
    assert curves(history, "loss") == {"test": [(2, 1.5)], "sites, training": [(2, 2.0)]}


def test_a_round_that_failed_or_gave_no_number_is_a_gap() -> None:
    no_number = line(3) | {"evaluation": {"test-accuracy": None}}
    (_, first), (_, second), (_, third) = curves([line(1), line(2, None), no_number], "accuracy")[
        "test"
    ]
    assert first == 0.5
    assert math.isnan(second)
    assert math.isnan(third)


def test_of_an_empty_history_there_is_no_curve() -> None:
    assert metric_series([], "accuracy") == metric_series([], "loss") == []


def test_sites_are_those_of_every_record_in_the_order_in_which_people_count() -> None:
    history = [
        line(1) | {"participants": {"site-10": {}}, "dropped": {"site-2": "odd"}},
        line(2) | {"participants": {}, "missing": ["berlin"], "late": {"site-1": 1}},
    ]
    assert sites_of(history, ["aachen"]) == ["aachen", "berlin", "site-1", "site-2", "site-10"]
