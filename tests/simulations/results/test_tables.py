"""Tables say what the outcomes say."""

import math
from typing import Any

import pytest

from mdc_flower.common.shown_metrics import ShownMetric
from simulations.results.csv_tables import csv_table
from simulations.results.intervals import PERCENT, Interval, Scale
from simulations.results.outcome import Outcome
from simulations.results.result_files import Results
from simulations.results.rows import best_arm, table_rows
from simulations.results.tables import markdown_table, table_cells
from simulations.results.tuning_tables import tuning_table
from tests.simulations.made_up import ERRORS, MEGABYTE, error_point, outcome, results, tuned

EXCHANGED = {"exchanges": 4, "sent_bytes": MEGABYTE, "received_bytes": 3 * MEGABYTE}
OUTCOMES: dict[str, dict[int, Outcome]] = {
    "base": {
        seed: outcome((1, 0.25), (2, value)) for seed, value in ((1, 0.90), (2, 0.92), (3, 0.94))
    },
    "other": {
        seed: outcome((1, 0.25), (2, value), **EXCHANGED)
        for seed, value in ((1, 0.89), (2, 0.92), (3, 0.92))
    },
}
RESULTS = results(OUTCOMES, ["baseline", "other"])


def test_differences_are_paired_by_seed() -> None:
    # -0.01, 0, -0.02: mean -0.01, standard deviation 0.01, half width 0.0248414.
    _, other = table_rows(RESULTS)
    assert other.difference.mean == pytest.approx(-0.01)
    assert other.difference.half_width == pytest.approx(0.0248414, abs=1e-6)
    assert (other.exchanges, other.sent_megabytes, other.received_megabytes) == (4, 1.0, 3.0)
    assert (other.per_step, other.seconds) == (0.004, 1.5)


def test_the_validation_split_shows_validation_accuracy() -> None:
    base, _ = table_rows(results(OUTCOMES, split="validation"))
    assert base.score.mean == pytest.approx(0.82)


def test_markdown_table() -> None:
    text = markdown_table(RESULTS)
    lines = text.splitlines()
    assert lines[0] == "### title"
    assert lines[2].startswith("| arm | test accuracy, % | difference from baseline, points |")
    assert lines[4] == "| baseline | **92.00 ± 4.97** |  | 0 | 0.0 | 0 | 1.5 |"
    assert lines[5] == "| other | 91.00 ± 4.30 | -1.00 ± 2.48 | 4 | 4.0 | 0.40 | 1.5 |"
    assert "Mean over 3 seeds" in text
    assert "Bold: the best arm that averages." in text


COSTS = {
    "base": {seed: outcome((2, 0.9), steps=1512, examples=240_000) for seed in (1, 2)},
    "other": {seed: outcome((2, 0.9), steps=300, examples=48_000 + seed) for seed in (1, 2)},
}


def test_time_and_work_stand_in_the_table_if_all_results_have_them() -> None:
    lines = markdown_table(results(COSTS)).splitlines()
    assert "| time, steps | work, examples | exchanges | exchanged, MB |" in lines[2]
    assert "| 1,512 | 240,000 | 0 |" in lines[4]
    assert "| 300 | 48,001.5 | 0 |" in lines[5]
    older = {**COSTS, "other": {seed: OUTCOMES["other"][seed] for seed in (1, 2)}}
    assert "time, steps" not in markdown_table(results(older))


def test_the_best_arm_is_one_that_averages_if_there_is_any() -> None:
    made = results(OUTCOMES)

    def best(*kinds: str) -> int | None:
        arms = [
            arm.model_copy(update={"kind": kind})
            for arm, kind in zip(made.facts.arms, kinds, strict=True)
        ]
        changed = made.model_copy(update={"facts": made.facts.model_copy(update={"arms": arms})})
        return best_arm(changed, table_rows(changed))

    assert best("centralized", "federated") == 1
    assert best("centralized", "one-site") == 0
    assert best("federated", "flower-fedavg") == 0
    lowest = errors((56.0, 58.0), (53.0, 55.0))
    assert best_arm(lowest, table_rows(lowest)) == 1


@pytest.mark.parametrize(
    ("config", "protocol", "said"),
    [
        ({"epoch-budget": 2}, "equal-passes", "same number of passes over its data. All start"),
        (
            {"epoch-budget": 2},
            "equal-time",
            "passes over its data, except base (as many steps as a site). All start",
        ),
        (
            {"epoch-budget": 2},
            "centralized-steps",
            "except base (each site as many steps as centralized training). All start",
        ),
        ({"step-budget": 2}, "equal-passes", "Every site takes the same number of optimizer steps"),
    ],
)
def test_below_the_table_stands_what_the_arms_have_in_common(
    config: dict[str, int], protocol: str, said: str
) -> None:
    made = results(OUTCOMES)
    changes = {"config": config, "protocol": protocol, "kind": "centralized"}
    arms = [arm.model_copy(update=changes) for arm in made.facts.arms[:1]]
    facts = made.facts.model_copy(update={"arms": [*arms, *made.facts.arms[1:]]})
    assert said in markdown_table(made.model_copy(update={"facts": facts}))


def test_the_bytes_of_a_small_model_are_not_rounded_to_nothing() -> None:
    small = {1: outcome((2, 0.5), sent_bytes=34_200, received_bytes=9_000)}
    _, cells = table_cells(results({"a": small}))
    assert cells[0][4] == "0.043"


def test_markdown_table_of_one_seed_claims_no_interval() -> None:
    text = markdown_table(results({key: {1: by_seed[1]} for key, by_seed in OUTCOMES.items()}))
    assert "One seed, so no intervals." in text
    assert "±" not in text


def test_the_tuning_table_shows_every_candidate_and_the_chosen_one_in_bold() -> None:
    tuning = {"base": tuned(0.5, 0.75, chosen=1), "other": tuned(0.8, 0.7, chosen=0)}
    lines = tuning_table(results(OUTCOMES, tuning=tuning)).splitlines()
    assert lines[2:] == [
        "| base | lr-max 0.1: 50.00; **lr-max 0.2: 75.00** |",
        "| other | **lr-max 0.1: 80.00**; lr-max 0.2: 70.00 |",
    ]
    assert tuning_table(RESULTS) == ""


def test_below_the_tuning_table_stands_whose_choice_is_at_an_end() -> None:
    tuning = {"base": tuned(0.5, 0.6, 0.7, chosen=2), "other": tuned(0.5, 0.7, 0.6, chosen=1)}
    text = tuning_table(results(OUTCOMES, tuning=tuning))
    assert text.endswith(
        "\n\nThe chosen value is the lowest or highest of three or more for: base.\n"
    )
    both = {**tuning, "other": tuned(0.7, 0.6, 0.5, chosen=0)}
    assert tuning_table(results(OUTCOMES, tuning=both)).endswith(" base; other.\n")


# Student's t at 97.5% for 1, 2 and 4 degrees of freedom: 12.706205, 4.302653, 2.776445.
#   0, 1: deviation 1 / sqrt(2); 12.706205 / sqrt(2) / sqrt(2) = 6.3531025
#   1, 2, 3: deviation 1; 4.302653 / sqrt(3) = 2.484138
#   1 to 5: deviation sqrt(10 / 4); 2.776445 * sqrt(2.5) / sqrt(5) = 1.963243
#   equal values: no width
@pytest.mark.parametrize(
    ("values", "mean", "half_width"),
    [
        ([0.0, 1.0], 0.5, 6.3531025),
        ([1.0, 2.0, 3.0], 2.0, 2.484138),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 1.963243),
        ([0.25] * 4, 0.25, 0.0),
    ],
)
def test_an_interval_is_students(values: list[float], mean: float, half_width: float) -> None:
    interval = Interval.of(values)
    assert interval.mean == mean
    assert interval.half_width == pytest.approx(half_width, rel=1e-6)
    assert Interval.of(values[::-1]) == interval


@pytest.mark.parametrize(
    ("interval", "plain", "signed"),
    [
        (Interval(0.98705, 0.0035), "98.70 ± 0.35", "+98.70 ± 0.35"),
        (Interval(-0.01, 0.02), "-1.00 ± 2.00", "-1.00 ± 2.00"),
        (Interval(0.0, math.nan), "0.00", "+0.00"),
    ],
)
def test_an_interval_is_written_in_percent(interval: Interval, plain: str, signed: str) -> None:
    assert interval.text(PERCENT) == plain
    assert interval.text(PERCENT, sign=True) == signed


def test_a_csv_table_is_quoted_and_exact() -> None:
    # Means of 0.5 and 1, 0.75, with a half width of 12.706205 * 0.25 = 3.1765512.
    one = {"a": {1: outcome((4, 0.5)), 2: outcome((4, 1.0))}}
    header, line = csv_table(results(one, ["a, quoted"])).splitlines()
    assert header.startswith(
        "arm,accuracy,accuracy_ci95,difference,difference_ci95,steps,examples,"
    )
    assert line.startswith('"a, quoted",0.75,3.17655118')
    assert line.endswith(",0.0,0.0,,,0.0,0.0,0.0,0.0,1.5")


def errors(a: tuple[float, float], b: tuple[float, float], **changes: Any) -> Results:
    """Return results of a regression with two arms and two seeds."""
    made = {
        arm: {seed: Outcome([error_point(2, value)]) for seed, value in enumerate(values, 1)}
        for arm, values in (("a", a), ("b", b))
    }
    return results(made, metrics=ERRORS, **changes)


def test_a_metric_of_which_lower_is_better_is_written_with_its_unit_and_digits() -> None:
    # Half widths: 12.706205 * 2 / 2 = 12.7062; halved for the mean absolute error. The
    # differences are -3 with both seeds.
    lines = markdown_table(errors((56.0, 58.0), (53.0, 55.0))).splitlines()
    assert lines[2].startswith(
        "| arm | test rmse, m (lower is better) | difference from a, m (below 0 is better) "
        "| mae, m (lower is better) | exchanges |"
    )
    assert lines[4].startswith("| a | 57.00 ± 12.71 |  | 28.50 ± 6.35 | 0 |")
    assert lines[5].startswith("| b | **54.00 ± 12.71** | -3.00 ± 0.00 | 27.00 ± 6.35 | 0 |")
    header, *_ = csv_table(errors((56.0, 58.0), (53.0, 55.0))).splitlines()
    assert header.startswith("arm,rmse,rmse_ci95,difference,difference_ci95,mae,mae_ci95,steps,")


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([1234.5, 2.0], 0), ([56.0], 2), ([0.5, 0.01], 4), ([0.00012], 7), ([0.0, math.nan], 3)],
)
def test_a_column_has_four_significant_digits_of_its_largest_value(
    values: list[float], decimals: int
) -> None:
    assert Scale.of(ShownMetric("rmse", "min", "m"), values) == Scale(1.0, decimals)
    assert Scale.of(ShownMetric("accuracy", "max", "%"), values) == PERCENT


def test_a_value_that_does_not_exist_is_an_empty_cell() -> None:
    assert Interval(math.nan, math.nan).text(PERCENT) == ""


def test_a_tuning_table_names_the_metric() -> None:
    tuning = {key: tuned(56.25, 1234.5, chosen=0) for key in ("a", "b")}
    lines = tuning_table(errors((1, 2), (1, 2), tuning=tuning)).splitlines()
    assert lines[0] == "| arm | candidates: validation rmse, m (lower is better) |"
    assert lines[2] == "| a | **lr-max 0.1: 56.25**; lr-max 0.2: 1234 |"
