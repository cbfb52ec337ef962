"""Runs of each kind of job, and resumes of them."""

from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.model_files import evaluate_run
from mdc_flower.reports.run_files import read_run
from mdc_flower.reports.run_page import run_page
from strategies.common.errors import DataError
from strategies.storage.run_directory import read_events, read_history
from tests import tiny_jobs
from tests.faults.runs import NUM_SITES, resumed, sha256

JOBS = {
    "classification": "accuracy",
    "labels": "f1-micro",
    "line": "rmse",
    "pixels": "mean-iou",
    "texts": "perplexity",
}
"""Each job with the metric that selects its best model."""


def config_in(run_dir: Path, job: str, **keys: Any) -> RunConfig:
    values = {"job": f"tests.tiny_jobs:{job}", "num-sites": NUM_SITES, "output-dir": str(run_dir)}
    more = {key.replace("_", "-"): value for key, value in keys.items()}
    return read_run_config({**tiny_jobs.KEYS, **values, **more})


@pytest.fixture(scope="module", params=JOBS)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Return a job's name, and the directory of a run of it."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    run_in_process(config_in(folder, request.param, site_evaluation=True), NUM_SITES)
    return request.param, folder


def test_the_sites_merged_metrics_equal_those_of_the_pooled_examples(
    finished: tuple[str, Path],
) -> None:
    job, folder = finished
    first, second = read_history(folder)
    pooled, merged = first["evaluation"], second["start_evaluation"]
    assert merged["num-validation-examples"] == tiny_jobs.NUM_VALIDATION
    assert set(merged) == {"num-validation-examples", *pooled}
    assert f"validation-{JOBS[job]}" in pooled
    for name, value in pooled.items():
        # The mean loss of a batch is float32; metrics and losses that are sums are float64.
        exact = name != "validation-loss" or job in ("pixels", "texts")
        assert merged[name] == pytest.approx(value, rel=1e-12 if exact else 1e-6), name


def test_a_run_records_its_metrics_and_which_one_selects(finished: tuple[str, Path]) -> None:
    job, folder = finished
    (started,) = read_events(folder, "run-started")
    selecting = [one["name"] for one in started["metrics"] if one["selects"]]
    assert selecting == [JOBS[job]]
    assert started["metrics"][0]["name"] == "loss"
    for line in read_history(folder):
        assert line["training"]["num-examples"] == tiny_jobs.NUM_TRAIN
        assert all(f"train-{JOBS[job]}" in metrics for metrics in line["participants"].values())


def test_the_same_run_has_the_same_bits_and_so_has_a_resumed_one(
    finished: tuple[str, Path], tmp_path: Path
) -> None:
    job, folder = finished
    config = config_in(tmp_path / "run", job, site_evaluation=True, epoch_budget=1)
    run_in_process(config, NUM_SITES)
    run_in_process(resumed(config, epoch_budget=2), NUM_SITES)
    assert sha256(tmp_path / "run") == sha256(folder)


def test_a_smaller_metric_is_better_where_the_job_says_so(tmp_path: Path) -> None:
    run_in_process(config_in(tmp_path / "run", "line", epoch_budget=6), NUM_SITES)
    errors = [line["evaluation"]["validation-rmse"] for line in read_history(tmp_path / "run")]
    best = errors.index(min(errors)) + 1
    assert f'"best-round":{best}' in _newest_checkpoint(tmp_path / "run").replace(" ", "")


def _newest_checkpoint(run_dir: Path) -> str:
    return max((run_dir / "checkpoints").glob("*.json")).read_text()


def test_a_stream_is_counted_in_steps_and_continues_where_the_last_round_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(tiny_jobs, "seen", seen, raising=False)
    keys: dict[str, Any] = {"local_steps": 2, "num_rounds": 3, "epoch_budget": 0, "num_sites": 1}
    run_in_process(config_in(tmp_path / "run", "recorded_stream", **keys), 1)
    read = [round(value * 7) for value in seen]
    # The trial and the fingerprint read the beginning, too; the rounds' own batches come last.
    assert read[-24:] == [number % 7 for number in range(24)]
    lines = read_history(tmp_path / "run")
    assert [line["participants"]["site-0"]["num-examples"] for line in lines] == [8, 8, 8]


def test_a_runs_model_is_evaluated_with_its_jobs_metrics(finished: tuple[str, Path]) -> None:
    job, folder = finished
    found = evaluate_run(folder, "", "", best=False)
    last = read_history(folder)[-1]["evaluation"]
    assert (found["job"], found["split"]) == (f"tests.tiny_jobs:{job}", "validation")
    assert found["num-examples"] == tiny_jobs.NUM_VALIDATION
    metrics = {name.removeprefix("validation-"): value for name, value in last.items()}
    assert {name: found[name] for name in metrics} == metrics


def test_a_runs_page_names_its_jobs_metrics(finished: tuple[str, Path]) -> None:
    job, folder = finished
    page = run_page(read_run(folder))
    shown = JOBS[job].replace("-", " ")
    assert f"{shown} (validation)" in dict(page.highlights)
    pictures = [picture for section in page.sections for picture in section.pictures]
    assert f"{shown.capitalize()} of the global model" in [picture.title for picture in pictures]
    text = repr(page)
    assert job in ("classification", "pixels") or "ccuracy" not in text


def test_a_job_without_examples_here_says_so(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"local_steps": 1, "num_rounds": 1, "epoch_budget": 0, "num_sites": 1}
    run_in_process(config_in(tmp_path / "run", "stream", **keys), 1)
    with pytest.raises(DataError, match="neither test nor validation examples here"):
        evaluate_run(tmp_path / "run", "", "", best=False)


def test_a_stream_of_texts_of_any_length_has_the_same_weight_in_each_round(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"local_steps": 2, "num_rounds": 3, "epoch_budget": 0, "num_sites": 1}
    run_in_process(config_in(tmp_path / "run", "stream_of_texts", **keys), 1)
    lines = read_history(tmp_path / "run")
    assert [line["participants"]["site-0"]["num-examples"] for line in lines] == [8, 8, 8]


def test_views_pass_over_a_metric_that_is_a_list(tmp_path: Path) -> None:
    run_in_process(config_in(tmp_path / "run", "recalls"), NUM_SITES)
    (*_, last) = read_history(tmp_path / "run")
    assert len(last["evaluation"]["validation-each"]) == 2
    assert last["evaluation"]["validation-recall"] >= 0
    run_page(read_run(tmp_path / "run"))
