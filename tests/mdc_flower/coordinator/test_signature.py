"""Runs in which a site's job differs from the coordinator's in what they must have in common."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.signature import signature_of
from mdc_flower.jobs.torch_job import TorchJob
from strategies.common.errors import ConfigError, SiteInputError
from strategies.storage.run_directory import read_history
from tests import tiny_jobs
from tests.mdc_flower.coordinator.test_exchange import lead

pytestmark = pytest.mark.usefixtures("identity")


def config(folder: Path, **keys: Any) -> RunConfig:
    job = {"job": f"{__name__}:common", "num-sites": 2, "min-sites": 1}
    return read_run_config({**tiny_jobs.KEYS, **job, "output-dir": str(folder), **keys})


def common(context: JobContext) -> TorchJob:
    return replace(tiny_jobs.classification(context), agreed={"tokenizer": "abc", "labels": 2})


def another_tokenizer(context: JobContext) -> TorchJob:
    return replace(common(context), agreed={"tokenizer": "xyz", "labels": 2})


def without(context: JobContext) -> TorchJob:
    return replace(common(context), agreed={})


def another_range(context: JobContext) -> TorchJob:
    job = common(context)
    (accuracy,) = job.measured
    return replace(job, measured=(replace(accuracy, metric=replace(accuracy.metric, high=100.0)),))  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    ("other", "name", "values"),
    [
        ("another_tokenizer", "tokenizer", ["xyz", "abc"]),
        ("without", "labels", ["nothing", "2"]),
        ("another_range", "metric accuracy", ["from 0.0 to 100.0", "from 0.0 to 1.0"]),
    ],
)
def test_a_site_that_differs_does_not_train_and_both_values_are_named(
    tmp_path: Path, other: str, name: str, values: list[str]
) -> None:
    jobs = {"north": f"{__name__}:common", "south": f"{__name__}:{other}"}
    run_dir = lead(config(tmp_path / "run"), jobs)
    lines = read_history(run_dir)
    assert [list(line["participants"]) for line in lines] == [["north"], ["north"]]
    assert all(line["causes"] == {"south": "config"} for line in lines)
    told = lines[0]["dropped"]["south"]
    assert f"differs from the coordinator's in '{name}'" in told
    assert all(value in told for value in values)


def test_a_run_whose_sites_all_differ_ends_with_what_to_do(tmp_path: Path) -> None:
    jobs = dict.fromkeys(("north", "south"), f"{__name__}:another_tokenizer")
    with pytest.raises(SiteInputError, match="All sites need the same signature") as caught:
        lead(config(tmp_path / "run"), jobs)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("given", [{"a": [1]}, {1: "a"}, {"a": None}, "abc"])
def test_what_cannot_be_compared_is_refused(given: Any) -> None:
    job = replace(common(JobContext(RunConfig())), agreed=given)
    with pytest.raises(ConfigError, match="signature cannot be compared"):
        signature_of(job)
