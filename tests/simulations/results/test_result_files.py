"""The two files that a comparison leaves: nothing is lost in them, and nothing is made up."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from simulations.results.outcome import Outcome
from simulations.results.result_files import (
    COMPARISON,
    RESULTS,
    Results,
    read_results,
    write_results,
)
from strategies.common.errors import DataError
from tests.simulations.made_up import ERRORS, outcome, results, tuned

MADE = results(
    {
        "a": {1: outcome((1, 0.1 + 0.2), (2, 2 / 3)), 2: outcome((2, 0.5))},
        "b": {seed: outcome((2, 0.5), relative_change=0.25) for seed in (1, 2)},
    },
    tuning={"a": tuned(0.5, 0.75, chosen=1), "b": tuned(0.5, 0.25, chosen=0)},
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_results(tmp_path, MADE)
    assert read_results(tmp_path) == MADE
    assert len((tmp_path / RESULTS).read_text().splitlines()) == 5


def test_accuracies_keep_every_digit_and_times_those_that_are_known(tmp_path: Path) -> None:
    point = replace(MADE.outcomes["a"][1].points[0], seconds=1.23456, relative_change=0.1234567)
    write_results(tmp_path, results({"a": {1: Outcome([point])}}))
    line = json.loads((tmp_path / RESULTS).read_text())
    assert (line["test"]["accuracy"], line["seconds"], line["relative_change"]) == (
        0.1 + 0.2,
        1.23,
        0.1235,
    )


def test_a_loss_that_is_not_finite_is_written_as_json_knows_it(tmp_path: Path) -> None:
    point = replace(MADE.outcomes["a"][1].points[0], test={"loss": math.nan, "accuracy": 0.5})
    write_results(tmp_path, results({"a": {1: Outcome([point])}}))
    assert '"test": {"loss": null,' in (tmp_path / RESULTS).read_text()
    assert math.isnan(read_results(tmp_path).outcomes["a"][1].final.test["loss"])


def test_a_line_of_a_version_that_knew_only_classifications_is_read(tmp_path: Path) -> None:
    write_results(tmp_path, results({"a": {1: outcome((2, 0.5))}}))
    facts = json.loads((tmp_path / COMPARISON).read_text())
    del facts["metrics"]
    (tmp_path / COMPARISON).write_text(json.dumps(facts))
    line = json.loads((tmp_path / RESULTS).read_text())
    old = {"validation": 0.4, "validation_loss": 1.25, "test": 0.5, "test_loss": None}
    (tmp_path / RESULTS).write_text(json.dumps(line | old) + "\n")
    read = read_results(tmp_path)
    assert (read.facts.metric.name, read.facts.metric.unit) == ("accuracy", "%")
    final = read.outcomes["a"][1].final
    assert final.validation == {"loss": 1.25, "accuracy": 0.4}
    assert final.test["accuracy"] == 0.5
    assert math.isnan(final.test["loss"])


def test_a_point_without_the_metric_of_the_comparison_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, results({"a": {1: outcome((2, 0.5))}}, metrics=ERRORS))
    with pytest.raises(DataError, match="a point lacks the metric 'rmse' on the test split") as c:
        read_results(tmp_path)
    assert c.value.where == f"{tmp_path / RESULTS}, a, seed 1"


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=COMPARISON):
        read_results(tmp_path)
    write_results(tmp_path, MADE)
    (tmp_path / RESULTS).unlink()
    with pytest.raises(DataError, match=RESULTS):
        read_results(tmp_path)


@pytest.mark.parametrize("line", ["", "{", '{"arm": "a"}', '{"arm": "a", "seed": 1, "x": 2}'])
def test_a_line_that_is_no_point_is_named(tmp_path: Path, line: str) -> None:
    write_results(tmp_path, MADE)
    with (tmp_path / RESULTS).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match="not a point of a curve") as caught:
        read_results(tmp_path)
    assert caught.value.where == f"{tmp_path / RESULTS}:6"


def test_a_seed_without_a_result_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, MADE)
    lines = (tmp_path / RESULTS).read_text().splitlines(keepends=True)
    (tmp_path / RESULTS).write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="for each seed") as caught:
        read_results(tmp_path)
    assert (caught.value.got, caught.value.expected) == ([1], "[1, 2]")


def test_an_arm_that_did_not_use_its_whole_budget_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, results({"a": {1: outcome((4, 0.5)), 2: outcome((2, 0.4), (3, 0.5))}}))
    with pytest.raises(DataError, match="whole budget") as caught:
        read_results(tmp_path)
    assert caught.value.where == f"{tmp_path / RESULTS}, a, seed 2"
    assert (caught.value.got, caught.value.expected) == ("3 epochs", "4")


def with_arm(changes: dict[str, object], *points: tuple[float, float]) -> Results:
    """Return results of one arm with changes, whose curve goes through these points."""
    made = results({"a": {1: outcome((4, 0.5))}})
    facts = made.facts.model_copy(update={"arms": [made.facts.arms[0].model_copy(update=changes)]})
    return Results(facts=facts, outcomes={"a": {1: outcome(*points)}})  # type: ignore[arg-type]


def test_a_yardstick_of_equal_time_uses_a_part_of_the_budget(tmp_path: Path) -> None:
    write_results(tmp_path, with_arm({"protocol": "equal-time"}, (1, 0.4), (1.8, 0.5)))
    assert read_results(tmp_path).outcomes["a"][1].final.epochs == 1.8
    write_results(tmp_path, with_arm({"protocol": "equal-steps"}, (1.8, 0.5)))
    with pytest.raises(DataError, match="whole budget"):
        read_results(tmp_path)


def test_a_budget_in_steps_must_be_used_as_well(tmp_path: Path) -> None:
    config = {"epoch-budget": 60, "step-budget": 12}
    write_results(tmp_path, with_arm({"config": config}, (6, 0.4), (12, 0.5)))
    assert read_results(tmp_path).facts.arms[0].counts_steps
    write_results(tmp_path, with_arm({"config": config}, (6, 0.4)))
    with pytest.raises(DataError, match="whole budget") as caught:
        read_results(tmp_path)
    assert (caught.value.got, caught.value.expected) == ("6 steps", "12")
