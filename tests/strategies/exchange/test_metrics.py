"""Metrics of several sites: what may be sent, and what becomes of it."""

import math
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message, MetricRecord, RecordDict

from strategies.aggregation.averaging import Update
from strategies.exchange.causes import Cause
from strategies.exchange.gate import Rejection, judge_evaluate
from strategies.exchange.messages import NUM_EXAMPLES, NUM_VALIDATION, evaluate_reply_content
from strategies.exchange.metrics import (
    ACCURACY,
    CLASSIFICATION,
    LOSS,
    Metric,
    SiteMetrics,
    Value,
    described,
    may_be_metric,
    ratio,
)
from tests.strategies.exchange.test_gate import request

PRECISION = Metric("precision", "max", ratio, "precision", 2, 0.0, 1.0, unit="%", selects=True)
SECRET = Metric("recall", "max", ratio, "recall", leaves_site=False)
KNOWN = SiteMetrics((LOSS, PRECISION, SECRET))


def sent(loss: float, hits: float, found: float, count: int) -> dict[str, Value]:
    return {
        NUM_VALIDATION: count,
        "validation-loss": loss,
        "validation-precision": [hits, found],
    }


def test_a_value_is_averaged_by_examples_and_sums_are_added() -> None:
    by_site = {"north": sent(1.0, 1, 1, 10), "south": sent(4.0, 10, 100, 30)}
    merged = KNOWN.mean_validation(by_site)
    assert merged == {
        NUM_VALIDATION: 40,
        "validation-loss": (10 * 1.0 + 30 * 4.0) / 40,
        "validation-precision": 11 / 101,
    }
    assert merged["validation-precision"] != pytest.approx((1.0 + 0.1) / 2)


def test_a_cap_on_a_sites_weight_scales_its_sums() -> None:
    by_site = {"north": sent(1.0, 1, 2, 10), "south": sent(4.0, 30, 90, 90)}
    merged = KNOWN.mean_validation(by_site, max_share=0.5)
    # South counts as 10 of its 90 examples.
    assert merged["validation-precision"] == pytest.approx((1 + 30 / 9) / (2 + 90 / 9))
    assert merged["validation-loss"] == pytest.approx(2.5)


def test_a_site_that_keeps_a_metric_or_all_of_them_back_does_not_count_for_it() -> None:
    less = {name: value for name, value in sent(1.0, 1, 2, 10).items() if "loss" not in name}
    by_site: dict[str, dict[str, Value]] = {
        "north": less,
        "south": sent(4.0, 3, 4, 30),
        "west": {NUM_EXAMPLES: 5},
    }
    merged = KNOWN.mean_validation(by_site)
    assert merged == {
        NUM_VALIDATION: 40,
        "validation-loss": 4.0,
        "validation-precision": pytest.approx(4 / 6),
    }
    assert KNOWN.mean_validation({"west": {NUM_EXAMPLES: 5}}) == {}


def test_a_record_has_values_where_a_reply_has_sums() -> None:
    values = KNOWN.values(sent(1.0, 1, 4, 10))
    assert values == {NUM_VALIDATION: 10, "validation-loss": 1.0, "validation-precision": 0.25}


def test_what_does_not_leave_a_site_has_no_name_in_a_message() -> None:
    assert not [name for name in KNOWN.names if "recall" in name]
    assert {"train-precision", "validation-precision"} <= KNOWN.names
    assert SiteMetrics((LOSS, replace(PRECISION, in_training=False))).training == {
        "train-loss": LOSS
    }


@pytest.mark.parametrize(
    ("metrics", "name"),
    [((LOSS, PRECISION), "precision"), ((LOSS,), "loss"), (CLASSIFICATION, "accuracy")],
)
def test_the_best_model_is_selected_by_the_metric_that_says_so_or_by_the_loss(
    metrics: tuple[Metric, ...], name: str
) -> None:
    assert SiteMetrics(metrics).selection.name == name


def test_better_is_larger_or_smaller_and_never_not_a_number() -> None:
    assert ACCURACY.is_better(0.5, 0.4)
    assert not ACCURACY.is_better(0.4, 0.4)
    assert LOSS.is_better(0.4, 0.5)
    for metric in (ACCURACY, LOSS):
        assert not metric.is_better(math.nan, 0.5)


def test_views_are_told_names_directions_and_units() -> None:
    assert described((PRECISION,)) == [
        {"name": "precision", "better": "max", "unit": "%", "selects": True, "leaves-site": True}
    ]


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("train-f1-macro", True),
        ("validation-r2", True),
        ("num-examples", True),
        ("train-", False),
        ("test-r2", False),
        ("train-F1", False),
        ("train-a/b", False),
    ],
)
def test_the_form_of_a_metrics_name(name: str, may: bool) -> None:
    assert may_be_metric(name) is may


def judged(metrics: dict[str, Value]) -> Update | Rejection:
    content = evaluate_reply_content({NUM_VALIDATION: 4, **metrics})
    return judge_evaluate(Message(content, reply_to=request()), "north", KNOWN)


def test_sums_pass_the_gate_unchanged() -> None:
    verdict = judged({"validation-precision": [1.0, 4.0], "validation-loss": -1.5})
    assert isinstance(verdict, Update)
    assert verdict.metrics["validation-precision"] == [1.0, 4.0]


def test_sums_of_whole_numbers_pass_too() -> None:
    record = MetricRecord({NUM_VALIDATION: 4, "validation-precision": [1, 4]})
    message = Message(RecordDict({"metrics": record}), reply_to=request())
    verdict = judge_evaluate(message, "north", KNOWN)
    assert isinstance(verdict, Update)
    assert verdict.metrics["validation-precision"] == [1.0, 4.0]


@pytest.mark.parametrize(
    ("value", "cause", "reason"),
    [
        (0.25, Cause.MISFIT, "is one number, expected a list of 2"),
        ([1.0], Cause.MISFIT, "has 1 numbers, expected 2"),
        ([1.0, math.inf], Cause.NOT_FINITE, "is inf"),
        ([math.nan, 1.0], Cause.NOT_FINITE, "is nan"),
        ([5.0, 4.0], Cause.OUT_OF_BOUNDS, "is 1.25, expected 0 to 1"),
        ([-1.0, 4.0], Cause.OUT_OF_BOUNDS, "is -0.25, expected 0 to 1"),
    ],
)
def test_other_sums_are_rejected(value: Value, cause: Cause, reason: str) -> None:
    verdict = judged({"validation-precision": value})
    assert isinstance(verdict, Rejection)
    assert (verdict.cause, reason in verdict.reason) == (cause, True), verdict.reason


def test_a_metric_that_does_not_leave_a_site_is_rejected() -> None:
    verdict = judged({"validation-recall": 0.5})
    assert isinstance(verdict, Rejection)
    assert "'validation-recall' is not among the metrics a site may send" in verdict.reason


def test_sums_without_a_value_are_no_reason_to_reject_a_site() -> None:
    assert isinstance(judged({"validation-precision": [0.0, 0.0]}), Update)


def test_sums_that_a_jobs_function_cannot_take_are_rejected() -> None:
    def fails(sums: list[float]) -> float:
        raise ZeroDivisionError("no pairs")

    known = SiteMetrics((LOSS, replace(PRECISION, finish=fails)))
    content = evaluate_reply_content({NUM_VALIDATION: 4, "validation-precision": [0.0, 0.0]})
    verdict = judge_evaluate(Message(content, reply_to=request()), "north", known)
    assert isinstance(verdict, Rejection)
    assert "its sums give no value: ZeroDivisionError: no pairs" in verdict.reason


@pytest.mark.parametrize("finish", [lambda sums: sums[0] ** 0.5, lambda sums: None, math.sqrt])
def test_a_function_that_gives_no_number_costs_the_site_and_not_the_run(finish: Any) -> None:
    odd = Metric("odd", "min", lambda sums: finish(sums if len(sums) > 1 else sums[0]), "odd", 1)
    known = SiteMetrics((LOSS, odd))
    content = evaluate_reply_content({NUM_VALIDATION: 4, "validation-odd": [-1.0]})
    verdict = judge_evaluate(Message(content, reply_to=request()), "north", known)
    assert isinstance(verdict, Rejection)


def test_sums_that_have_no_value_together_do_not_end_the_run() -> None:
    root = Metric("root", "min", lambda sums: math.sqrt(sums[0] / sums[1]), "root", 2)
    known = SiteMetrics((LOSS, root))
    by_site: dict[str, dict[str, Value]] = {
        "north": {NUM_VALIDATION: 4, "validation-root": [5.0, 100.0]},
        "south": {NUM_VALIDATION: 4, "validation-root": [-1000.0, -1.0]},
    }
    merged = known.mean_validation(by_site)["validation-root"]
    assert math.isnan(merged)  # type: ignore[arg-type]


BOUNDED = Metric("hits", "max", ratio, "hits", 2, 0.0, 1.0, (0.0, 1.0), selects=True)


@pytest.mark.parametrize("sums", [[0.0, 1e15], [-1.0, -1.0], [5.0, 5.0]])
def test_sums_are_bounded_by_the_claimed_number_of_examples(sums: list[float]) -> None:
    content = evaluate_reply_content({NUM_VALIDATION: 4, "validation-hits": sums})
    known = SiteMetrics((LOSS, BOUNDED))
    verdict = judge_evaluate(Message(content, reply_to=request()), "north", known)
    assert isinstance(verdict, Rejection)
    assert "for 4 examples" in verdict.reason or "expected 0 to 1" in verdict.reason


def test_a_value_that_float32_puts_a_little_outside_is_accepted() -> None:
    known = SiteMetrics((LOSS, replace(PRECISION, finish=lambda sums: 1.0000001)))
    content = evaluate_reply_content({NUM_VALIDATION: 4, "validation-precision": [1.0, 1.0]})
    assert isinstance(judge_evaluate(Message(content, reply_to=request()), "north", known), Update)
