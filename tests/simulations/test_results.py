"""Tables and pictures say what the outcomes say."""

import csv
import io
import json
import math
from typing import Any

import pytest

from simulations.arm import Arm, ArmTable
from simulations.baselines import Outcome, Point
from simulations.results import (
    Interval,
    csv_table,
    draw_curves,
    json_lines,
    markdown_table,
    table_rows,
)

ARMS = [
    Arm(key="base", table=ArmTable(name="baseline"), values={}),
    Arm(key="other", table=ArmTable(), values={}),
]


def outcome(final: float, rounds: int = 0, exchanged: int = 0) -> Outcome:
    points = [Point(1, 1, 0.5, 0.25), Point(2, 2, final - 0.1, final)]
    return Outcome(points, rounds, exchanged, 1.5)


OUTCOMES: dict[str, dict[int, Outcome]] = {
    "base": {1: outcome(0.90), 2: outcome(0.92), 3: outcome(0.94)},
    "other": {1: outcome(0.89, 4, 2_000_000), 2: outcome(0.92, 4, 2_000_000),
              3: outcome(0.92, 4, 2_000_000)},
}  # fmt: skip


def test_interval_by_hand() -> None:
    # 0.90, 0.92, 0.94: mean 0.92, standard deviation 0.02, t(0.975, 2) = 4.302653;
    # half width 4.302653 * 0.02 / sqrt(3) = 0.0496829.
    interval = Interval.of([0.90, 0.92, 0.94])
    assert interval.mean == pytest.approx(0.92)
    assert interval.half_width == pytest.approx(0.0496829, abs=1e-6)
    assert interval.percent() == "92.00 ± 4.97"
    assert interval.percent(sign=True) == "+92.00 ± 4.97"


def test_one_seed_has_no_interval() -> None:
    interval = Interval.of([0.9])
    assert math.isnan(interval.half_width)
    assert interval.percent() == "90.00"


def test_differences_are_paired_by_seed() -> None:
    # -0.01, 0, -0.02: mean -0.01, standard deviation 0.01, half width 0.0248414.
    _, other = table_rows(ARMS, OUTCOMES, "test")
    assert other.difference.mean == pytest.approx(-0.01)
    assert other.difference.half_width == pytest.approx(0.0248414, abs=1e-6)
    assert (other.rounds, other.megabytes, other.seconds) == (4, 2.0, 1.5)


def test_the_validation_split_shows_validation_accuracy() -> None:
    base, _ = table_rows(ARMS, OUTCOMES, "validation")
    assert base.accuracy.mean == pytest.approx(0.82)


def test_markdown_table() -> None:
    text = markdown_table("title", table_rows(ARMS, OUTCOMES, "test"), "test", 3)
    lines = text.splitlines()
    assert lines[0] == "### title"
    assert lines[2].startswith("| arm | test accuracy, % | difference to baseline, points |")
    assert lines[4] == "| baseline | 92.00 ± 4.97 |  | 0 | 0.0 | 1.5 |"
    assert lines[5] == "| other | 91.00 ± 4.30 | -1.00 ± 2.48 | 4 | 2.0 | 1.5 |"
    assert "Mean over 3 seeds" in text


def test_markdown_table_of_one_seed_claims_no_interval() -> None:
    one = {key: {1: by_seed[1]} for key, by_seed in OUTCOMES.items()}
    text = markdown_table("title", table_rows(ARMS, one, "test"), "test", 1)
    assert "One seed, so there are no intervals." in text
    assert "±" not in text


def test_csv_table_has_the_same_figures() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table(table_rows(ARMS, OUTCOMES, "test")))))
    assert [row["arm"] for row in rows] == ["baseline", "other"]
    assert float(rows[1]["difference"]) == pytest.approx(-0.01)


def test_json_lines_have_every_point() -> None:
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in json_lines(ARMS, OUTCOMES).splitlines()
    ]
    assert len(lines) == 2 * 3 * 2
    assert lines[0] == {
        "arm": "baseline", "seed": 1, "round": 1, "epochs": 1, "validation": 0.5, "test": 0.25
    }  # fmt: skip


def test_curves_are_a_picture_also_of_seeds_that_share_only_some_points() -> None:
    ragged = {
        **OUTCOMES,
        "other": {**OUTCOMES["other"], 2: Outcome([Point(9, 2, 0.8, 0.8)], 1, 0, 1.0)},
    }
    for outcomes in (OUTCOMES, ragged):
        assert draw_curves("title", ARMS, outcomes, "test").startswith(b"\x89PNG")
