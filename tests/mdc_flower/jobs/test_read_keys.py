"""Keys of the run config that a user's job does not read: they have no effect, and are named."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import JOB_KEYS, RunConfig, read_run_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.read_keys import unread_keys, watched
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.jobs.torch_job import TorchJob
from strategies.storage.run_directory import read_events
from tests import tiny, tiny_jobs
from tests.faults.runs import sha256
from tests.mdc_flower.test_config import OTHER_VALUES

OTHERS = {key: value for key, value in OTHER_VALUES.items() if key in JOB_KEYS}


def context(**keys: Any) -> JobContext:
    config = read_run_config({"batch-size": 7, "dataset": "mine", "data-root": "/here", **keys})
    return JobContext(config, data="/data", data_root="/root")


def unread_after(use: Callable[[JobContext], object]) -> list[str]:
    given = context()
    seen, read = watched(given)
    use(seen)
    return unread_keys(given.config, read)


@pytest.mark.parametrize(
    ("use", "unread"),
    [
        (lambda c: c.site, ["dataset", "data-root", "batch-size"]),
        (lambda c: c.rows(5), ["dataset", "data-root", "batch-size"]),
        (lambda c: c.config.unit, ["dataset", "data-root", "batch-size"]),
        (lambda c: c.config.batch_size, ["dataset", "data-root"]),
        (lambda c: c.config.dataset, ["data-root", "batch-size"]),
        (lambda c: c.data, ["data-root", "batch-size"]),
        (lambda c: c.data_root, ["dataset", "batch-size"]),
        (lambda c: copy.copy(c).config.batch_size, ["dataset", "data-root"]),
        (lambda c: replace(c, site="berlin").config.batch_size, []),
        (lambda c: c.config.to_flower()["batch-size"], []),
        (lambda c: c.config.model_copy(update={"seed": 2}), []),
        (lambda c: vars(c.config), []),
        (hash, []),
        (pickle.dumps, []),
        (copy.deepcopy, []),
    ],
)
def test_a_job_reads_a_key_by_its_field_or_all_at_once(
    use: Callable[[JobContext], object], unread: list[str]
) -> None:
    assert unread_after(use) == unread


def test_a_watched_context_says_what_the_given_one_says() -> None:
    given = context()
    seen, _ = watched(given)
    assert isinstance(seen.config, RunConfig)
    assert seen.config.to_flower() == given.config.to_flower()
    assert (seen.data, seen.data_root, seen.site) == ("/data", "/root", "")
    assert asdict(seen).keys() == asdict(given).keys()
    for copied in (pickle.loads(pickle.dumps(seen)), copy.deepcopy(seen)):
        assert copied.config.to_flower() == given.config.to_flower()


def test_a_default_is_no_key_that_the_user_sets() -> None:
    config = read_run_config({"batch-size": RunConfig().batch_size, "num-rounds": 3})
    assert unread_keys(config, set()) == []


def run_with(folder: Path, **keys: Any) -> Path:
    values = {**tiny_jobs.KEYS, "num-sites": 2, "output-dir": str(folder)}
    run_in_process(read_run_config({**values, **keys}), 2)
    return folder


def warnings_in(run_dir: Path) -> list[str]:
    return [event["text"] for event in read_events(run_dir, "warning")]


def test_a_run_names_the_keys_without_effect_before_its_first_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # As a job's keys are those that only the job may use, others change no bit of its model.
    plain = run_with(tmp_path / "plain", job="tests.tiny_jobs:classification")
    assert warnings_in(plain) == []
    other = run_with(tmp_path / "other", job="tests.tiny_jobs:classification", **OTHERS)
    assert sha256(other) == sha256(plain)
    (text,) = warnings_in(other)
    assert text.startswith("the run config sets keys that the job has not read: dataset, data-root")
    assert all(key in text for key in OTHERS)
    assert text in caplog.text
    (warned,), (first, _) = (read_events(other, kind) for kind in ("warning", "round-started"))
    assert warned["time"] <= first["time"]


def reading(context: JobContext) -> TorchJob:
    """Return a job that reads keys when it is built, and when a model is to be trained."""
    config = context.config
    job = tiny_jobs.classification(context)
    assert config.batch_size == 3

    def optimizer(model: Any) -> Any:
        made = job.optimizer(model)
        made.param_groups[0]["weight_decay"] = config.weight_decay
        return made

    return replace(job, new_optimizer=optimizer)


def test_keys_that_the_job_reads_in_training_are_not_named() -> None:
    keys = {"batch-size": 3, "weight-decay": 0.1, "label-smoothing": 0.1, "lr-max": 0.2}
    config = read_run_config({"job": f"{__name__}:reading", **keys})
    task = load_run_task(config)
    task.check_model()
    assert task.unread_keys(config) == ["label-smoothing"]


def test_a_classification_of_the_data_set_has_no_idle_keys(tmp_path: Path) -> None:
    assert warnings_in(run_with(tmp_path / "run", **tiny.KEYS)) == []
