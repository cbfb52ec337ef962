"""Jobs: which results are taken again, what counts as divergence, and what an error says."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdc_flower.site.client import SiteClient
from simulations.compare.arm import ARMS_DIR, ArmTable, load_arm
from simulations.compare.job_files import JOB, RESULT
from simulations.compare.jobs import Job, finished_jobs, run_job
from simulations.compare.provenance import hardware, versions
from strategies.common.errors import ConfigError, EngineError, QuorumError
from strategies.storage.run_directory import read_history

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "max-train-examples": 60,
    "model": "mlp",
    "num-sites": 2,
    "epoch-budget": 2,
    "local-epochs": 1,
    "ile-epsilon": 0.0,
    "lr-max": 0.05,
}


def job_in(
    folder: Path, arm: str = "co-learning", trying: str = "", more: Mapping[str, Any] = SMALL
) -> Job:
    one = load_arm(arm, ARMS_DIR, {})
    config = one.config({**SMALL, **more}, seed=1, output_dir=str(folder))
    return Job(one, 1, config, folder, trying)


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Which results are taken again


def test_a_job_draws_no_picture_of_its_own(tmp_path: Path) -> None:
    run_job(job_in(tmp_path / "job"))
    assert not list((tmp_path / "job").rglob("*.png"))


def test_a_result_keeps_the_hardware_that_it_was_computed_on(tmp_path: Path) -> None:
    job = job_in(tmp_path / "job", "centralized")
    computed = run_job(job)
    assert (computed.hardware, computed.versions) == (hardware(), versions())
    path = job.folder / RESULT
    stored = json.loads(path.read_text())
    assert (stored["kind"], stored["config"]["lr-max"]) == ("centralized", 0.05)
    path.write_text(json.dumps(stored | {"hardware": "another", "versions": {"torch": "1.0"}}))
    again = run_job(job)
    assert (again.outcome, again.hardware, again.versions) == (
        computed.outcome,
        "another",
        {"torch": "1.0"},
    )


def test_a_result_of_another_kind_of_arm_is_refused(tmp_path: Path) -> None:
    job = job_in(tmp_path / "job", "centralized")
    run_job(job)
    before = files_in(tmp_path)
    for table, what in (
        (ArmTable(kind="one-site"), "one-site"),
        (ArmTable(kind="centralized", protocol="equal-time"), "centralized, equal-time"),
    ):
        arm = job.arm.model_copy(update={"table": table})
        with pytest.raises(ConfigError, match="a result of a different kind of arm") as caught:
            run_job(replace(job, arm=arm))
        assert (caught.value.got, caught.value.expected) == ("centralized", what)
    assert files_in(tmp_path) == before


def images(root: Path, brightness: int) -> None:
    """Leave twelve images of two classes to train on, of which one has this brightness."""
    for split, count in (("train", 6), ("test", 1)):
        for label in (0, 1):
            folder = root / "letters" / split / "ab"[label]
            folder.mkdir(parents=True)
            for number in range(count):
                shade = brightness if (split, label, number) == ("train", 0, 0) else 100
                pixels = np.full((4, 4, 3), shade + 50 * label, np.uint8)
                pixels[0, 0] += split == "test"  # no file is in both splits
                Image.fromarray(pixels).save(folder / f"{number}.png")


def letters_job(folder: Path, root: Path, arm: str) -> Job:
    return job_in(folder, arm, more={"dataset": "image-folder:letters", "data-root": str(root)})


@pytest.mark.parametrize("left", ["result", "run"])
def test_results_of_other_data_are_refused_and_of_the_same_elsewhere_are_not(
    tmp_path: Path, left: str
) -> None:
    for name, brightness in (("here", 10), ("other", 11)):
        images(tmp_path / name, brightness)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    arm = "centralized" if left == "result" else "co-learning"
    computed = run_job(letters_job(tmp_path / "job", tmp_path / "here", arm))
    if left == "run":
        (tmp_path / "job" / RESULT).unlink()
    before = files_in(tmp_path / "job")
    # Classes, sizes and the cut are the same: one pixel's brightness is not.
    with pytest.raises(ConfigError, match="a result of different data"):
        run_job(letters_job(tmp_path / "job", tmp_path / "other", arm))
    assert files_in(tmp_path / "job") == before
    again = run_job(letters_job(tmp_path / "job", tmp_path / "there", arm))
    assert again.outcome == computed.outcome


@pytest.mark.parametrize("left", ["result", "run"])
def test_what_an_earlier_version_left_is_refused(tmp_path: Path, left: str) -> None:
    job = job_in(tmp_path / "job")
    run_job(job)
    (job.folder / JOB).unlink()
    if left == "run":
        (job.folder / RESULT).unlink()
    else:
        stored = json.loads((job.folder / RESULT).read_text())
        old = {key: stored[key] for key in ("config", "outcome")}
        (job.folder / RESULT).write_text(json.dumps(old))
    before = files_in(tmp_path)
    with pytest.raises(ConfigError, match="does not record its data"):
        run_job(job)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("arm", ["centralized", "co-learning"])
@pytest.mark.parametrize("share", [0.0, 0.5], ids=["empty", "cut"])
def test_a_result_that_is_cut_off_is_computed_again(tmp_path: Path, arm: str, share: float) -> None:
    job = job_in(tmp_path / "job", arm)
    outcome = run_job(job).outcome
    whole = (job.folder / RESULT).read_bytes()
    (job.folder / RESULT).write_bytes(whole[: int(share * len(whole))])
    again = run_job(job).outcome
    assert [point.test for point in again.points] == [p.test for p in outcome.points]
    assert json.loads((job.folder / RESULT).read_text())["kind"] == job.arm.table.kind


# A site that does not take part


def failing(self: SiteClient, *args: Any) -> Any:
    if self.site == "site-1":
        raise OSError("the disk is full")
    return fit(self, *args)


def diverging(self: SiteClient, *args: Any) -> Any:
    arrays, num_examples, metrics = fit(self, *args)
    if self.site == "site-1":
        arrays[0] = np.full_like(arrays[0], np.nan)
    return arrays, num_examples, metrics


fit = SiteClient.fit


@pytest.mark.parametrize(
    ("what", "reason"),
    [(failing, "the disk is full"), (diverging, "values are not finite")],
    ids=["fails", "diverges"],
)
def test_a_round_without_one_of_the_sites_is_an_error_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Any, reason: str
) -> None:
    # Of 3 sites 2 would be a quorum, and a result of two thirds of the data.
    monkeypatch.setattr(SiteClient, "fit", what)
    job = job_in(tmp_path / "job", more={"num-sites": 3})
    with ThreadPoolExecutor(1) as pool, pytest.raises(QuorumError) as caught:
        list(finished_jobs(pool, [job]))
    said = str(caught.value)
    assert "round 1 has too few updates" in said
    assert "site-1: " in said
    assert reason in said
    assert caught.value.__notes__ == ["in the job co-learning, seed 1"]
    assert not (job.folder / RESULT).exists()
    assert read_history(job.folder)[-1]["failed"]


def test_a_candidate_with_which_one_site_diverges_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SiteClient, "fit", diverging)
    job = job_in(tmp_path / "job", trying="lr-max 1", more={"num-sites": 3})
    assert list(run_job(job).outcome.points) == []
    monkeypatch.undo()
    assert list(run_job(job).outcome.points) == [], "from the folder"


def test_a_site_that_fails_in_tuning_is_no_divergence_and_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path / "job", trying="lr-max 1", more={"num-sites": 3})
    with monkeypatch.context() as patch:
        patch.setattr(SiteClient, "fit", failing)
        with pytest.raises(QuorumError, match="the disk is full"):
            run_job(job)
    assert not (job.folder / RESULT).exists()
    assert run_job(job).outcome.final.epochs == 2, "it goes on when the site is back"


@pytest.mark.parametrize("arm", ["centralized", "one-site", "ensemble"])
def test_a_baseline_whose_loss_is_not_finite_has_diverged_in_tuning(
    tmp_path: Path, arm: str
) -> None:
    job = job_in(tmp_path / "tried", arm, "lr-max 1e30", more={"lr-max": 1e30})
    assert list(run_job(job).outcome.points) == []
    reported = run_job(job_in(tmp_path / "reported", arm, more={"lr-max": 1e30})).outcome
    assert not math.isfinite(reported.final.validation["loss"])


# What an error says


NO_DATA = {"dataset": "digit"}


def test_a_job_that_fails_is_named_and_the_others_finish(tmp_path: Path) -> None:
    bad = [
        replace(
            job_in(tmp_path / f"bad-{seed}", more={"dataset": "digit"}),
            seed=seed,
            trying="lr-max 1",
        )
        for seed in (3, 4)
    ]
    good = job_in(tmp_path / "good", "centralized")
    done: list[Job] = []
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError) as caught:  # noqa: PT012
        for job, _ in finished_jobs(pool, [*bad, good]):
            done.append(job)
    assert done == [good]
    assert (good.folder / RESULT).is_file()
    first, other = caught.value.__notes__
    assert first == "in the job co-learning, seed 3, trying lr-max 1"
    assert other.startswith("the job co-learning, seed 4, trying lr-max 1 failed, too: ")
    assert "no such data set" in other


class Dying(ProcessPoolExecutor):
    """Processes that die of whatever they are given, as one does that the system kills."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(os._exit, 9)


def test_a_process_that_dies_is_an_error_that_names_what_is_not_finished(tmp_path: Path) -> None:
    jobs = [job_in(tmp_path / arm, arm) for arm in ("centralized", "co-learning")]
    with Dying(1, get_context("spawn")) as pool, pytest.raises(EngineError) as caught:
        list(finished_jobs(pool, jobs))
    said = str(caught.value)
    assert said.startswith("a worker process died; unfinished jobs: centralized, seed 1")
    assert "; co-learning, seed 1. " in said
