"""``result.json``: metrics as numbers or sums, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.site.own_loop.result import Result, read_result
from strategies.common.errors import MdcError


def result(folder: Path, kind: str, **fields: Any) -> Result:
    (folder / "result.json").write_text(json.dumps({"num_examples": 5, **fields}))
    return read_result(folder, kind, "north")


def test_metrics_of_any_job_are_numbers_or_sums(tmp_path: Path) -> None:
    metrics = {"loss": 1, "f1-score": [1.0, 2.0, 3]}
    named: dict[str, Any] = {"train-loss": 1.0, "train-f1-score": [1.0, 2.0, 3.0], "num-steps": 7}
    assert result(tmp_path, "train", num_steps=7, metrics=metrics) == Result(5, named)


def test_only_an_evaluation_may_have_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    metrics = {"loss": float("nan"), "accuracy": 0.5, "pieces": [float("inf")]}
    assert result(tmp_path, "evaluate", metrics=metrics).metrics == {"validation-accuracy": 0.5}
    with pytest.raises(MdcError, match="expected finite numbers"):
        result(tmp_path, "train", metrics=metrics)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_steps": -1}, "num_steps: the result has an unusable value (got -1"),
        ({"num_steps": True}, "num_steps: the result has an unusable value"),
        ({"num_examples": 2**60}, "num_examples: the result has an unusable value"),
        ({"metrics": [1]}, "metrics: the result has the wrong type (got 'list'"),
        ({"metrics": {"loss": "low"}}, "metrics: the result has an unusable value (got 'str'"),
        ({"metrics": {"Loss": 1}}, "metrics: the result has a metric that cannot be sent"),
        ({"weight": 5, "secret": 1}, "the result has unknown fields (got '2 of them'"),
    ],
)
def test_a_field_that_is_no_result_is_named(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(MdcError) as caught:
        result(tmp_path, "train", **fields)
    assert f"site 'north', result.json{'' if 'weight' in fields else ', '}" in str(caught.value)
    assert told in str(caught.value)
