"""Comparisons: equal budgets, the same examples, nothing computed twice, nothing mixed up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from mdc_flower.config import read_site_config
from mdc_flower.task import load_task
from simulations.arm import ARMS_DIR, load_arm
from simulations.baselines import Outcome, train_without_exchange
from simulations.comparison import (
    RESULT,
    Comparison,
    Job,
    read_comparison,
    run_comparison,
    run_job,
)
from strategies.colearning import CoLearning
from strategies.errors import ConfigError, QuorumError
from strategies.journal.run_directory import SUMMARY, RunDirectory, read_events, read_history
from strategies.position import Position
from strategies.round_record import RoundRecord

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "max-train-examples": 200,
    "model": "mlp",
    "num-sites": 2,
    "epoch-budget": 4,
    "local-epochs": 1,
    "ile-epsilon": 10.0,
    "lr-max": 0.05,
}
ARMS = ["centralized", "co-learning", "fedavg", "one-site"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def small_comparison(**changes: Any) -> Comparison:
    values = {"name": "small", "arms": ARMS, "num_seeds": 2, "config": SMALL, **changes}
    return Comparison(**values)


def arms_of(comparison: Comparison) -> list[Any]:
    return [load_arm(arm, ARMS_DIR, {}) for arm in comparison.arms]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, cache: None
) -> tuple[Path, dict[str, dict[int, Outcome]]]:
    """Run all four arms with two seeds once."""
    output = tmp_path_factory.mktemp("comparison")
    comparison = small_comparison()
    return output, run_comparison(comparison, arms_of(comparison), output, workers=2)


def test_every_arm_uses_the_whole_budget_with_every_seed(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    _, outcomes = finished
    assert sorted(outcomes) == sorted(ARMS)
    for by_seed in outcomes.values():
        assert sorted(by_seed) == [1, 2]
        assert all(outcome.points[-1].epochs == 4 for outcome in by_seed.values())


def test_fedavg_takes_the_rounds_of_co_learning(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    output, outcomes = finished
    # With epsilon 10 every round doubles: 1 + 2 + the 1 that is left of 4.
    assert outcomes["co-learning"][1].rounds == 3
    assert outcomes["fedavg"][1].rounds == 3
    history = read_history(output / "fedavg" / "seed-1")
    assert [line["plan"]["local_epochs"] for line in history] == [1, 1, 2]
    assert {line["plan"]["shape"] for line in history} == {"constant"}


def test_only_arms_that_exchange_have_exchanged_bytes(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    _, outcomes = finished
    exchanged = {arm: outcomes[arm][1].exchanged_bytes for arm in ARMS}
    assert exchanged["centralized"] == exchanged["one-site"] == 0
    # The MLP's 64 x 64 + 64 + 64 x 10 + 10 = 4,810 float32, to and from 2 sites, in 3 rounds,
    # beside a little for names and headers.
    least = 4810 * 4 * 2 * 2 * 3
    assert least < exchanged["co-learning"] == exchanged["fedavg"] < 1.1 * least


def test_a_second_call_reads_the_results_and_trains_nothing(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    output, outcomes = finished
    files = sorted(output.rglob(RESULT))
    before = [file.stat().st_mtime_ns for file in files]
    done: list[tuple[str, int, int]] = []

    def on_done(job: Job, number: int, total: int) -> None:
        done.append((job.arm.key, number, total))

    comparison = small_comparison()
    again = run_comparison(comparison, arms_of(comparison), output, 2, on_done)
    assert again == outcomes
    assert [file.stat().st_mtime_ns for file in files] == before
    assert [(number, total) for _, number, total in done] == [(i, 8) for i in range(1, 9)]


def job_in(folder: Path, **changes: Any) -> Job:
    """Return co-learning with seed 1 in a folder: three rounds, of 1, 2 and 1 epochs."""
    arm = load_arm("co-learning", ARMS_DIR, {})
    config = arm.config({**SMALL, **changes}, seed=1, output_dir=str(folder))
    return Job(arm, 1, config, folder)


def test_an_ensemble_is_a_job_like_others_and_exchanges_every_sites_model_once(
    tmp_path: Path, cache: None
) -> None:
    arm = load_arm("ensemble", ARMS_DIR, {})
    job = Job(arm, 1, arm.config(SMALL, seed=1, output_dir=str(tmp_path)), tmp_path)
    outcome = run_job(job)
    assert (outcome.rounds, outcome.exchanged_bytes) == (1, 2 * 4810 * 4)
    assert [point.epochs for point in outcome.points] == [1, 2, 3, 4]
    assert run_job(job) == outcome, "from the folder"


def test_results_of_another_config_are_refused(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    output, outcomes = finished
    folder = output / "co-learning" / "seed-1"
    assert run_job(job_in(folder)) == outcomes["co-learning"][1]
    with pytest.raises(ConfigError, match="another config"):
        run_job(job_in(folder, **{"lr-max": 0.01}))


def test_an_interrupted_job_goes_on_and_gives_what_it_would_have_given(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record_round = RunDirectory.round_finished

    def interrupt(self: RunDirectory, record: RoundRecord, position: Position) -> None:
        record_round(self, record, position)
        if record.round == 2:
            raise KeyboardInterrupt

    job = job_in(tmp_path / "job")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "round_finished", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_job(job)
    assert not (job.folder / RESULT).exists()
    outcome = run_job(job)
    whole = finished[1]["co-learning"][1]
    assert outcome == replace(whole, seconds=outcome.seconds)
    assert read_events(job.folder, "run-resumed")[0]["rounds_done"] == 2
    plans = [event["plan"]["round"] for event in read_events(job.folder, "round-started")]
    assert plans == [1, 2, 3], "no round is trained again"


def interrupt(*args: object, **kwargs: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "method"), [(RunDirectory, "begin"), (CoLearning, "start")], ids=["begin", "start"]
)
def test_a_job_that_died_before_its_first_round_starts_again(
    tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    job = job_in(tmp_path / "job")
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_job(job)
    assert run_job(job).rounds == 3


@pytest.mark.parametrize("key", ["lr-max", "epoch-budget"])  # a single run may go on with the last
def test_an_interrupted_job_of_another_config_is_refused_and_left_as_it_is(
    tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(CoLearning, "start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_job(job_in(tmp_path / "job"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="the folder holds a result of another config"):
        run_job(job_in(tmp_path / "job", **{key: 2}))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_pooled_training_is_on_exactly_what_the_sites_train_on(cache: None) -> None:
    config = load_arm("centralized", ARMS_DIR, {}).config(SMALL)
    task = load_task(config)
    sites = [
        task.site_data(read_site_config({"partition-id": site, "num-partitions": 2})).train
        for site in range(2)
    ]
    union = np.concatenate([site.inputs for site in sites]).reshape(-1, 64)
    pooled = task.coordinator_data(2).pooled.inputs.reshape(-1, 64)
    assert len(pooled) == 180, "200 examples, 10 of the 100 of each site held out"
    assert sorted(map(bytes, union)) == sorted(map(bytes, pooled))


def test_training_without_exchange_repeats_to_the_bit(cache: None) -> None:
    config = load_arm("one-site", ARMS_DIR, {}).config(SMALL, seed=5)
    first, second = (train_without_exchange(config, "one-site") for _ in range(2))
    assert first.points == second.points


@pytest.mark.parametrize("name", sorted(path.stem for path in ARMS_DIR.glob("*.toml")))
def test_every_arm_of_the_project_loads(name: str) -> None:
    arm = load_arm(name, ARMS_DIR, {})
    more = {"num_rounds": 2} if arm.table.rounds_of else {}
    assert arm.config(SMALL, **more).epoch_budget == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\narms = ["nope"]', "no such arm"),
        ('name = "x"\narms = []', "arms"),
        ('arms = ["fedavg", "co-learning"]', "name"),
        ('name = "x"\narms = ["fedavg"]', "the arm whose rounds it takes"),
        ('name = "x"\narms = ["co-learning", "co-learning"]', "the same file name"),
        ('name = "x"\narms = ["co-learning"]\nseeds = 3', "seeds"),
        ('name = "x"\narms = ["co-learning"]\n[arm-config.fedavg]\nlr-max = 1.0', "fedavg"),
        ('name = "x"\narms = ["mine.toml"]', "mine.toml, .arm., kind"),
    ],
)
def test_a_comparison_that_cannot_be_run_is_refused_by_name(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.toml").write_text('[arm]\nkind = "magic"\n')
    path = tmp_path / "comparison.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_comparison(path)


def test_an_arm_by_path_and_its_own_keys(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('lr-max = 0.5\n[arm]\nname = "my arm"\n')
    path = tmp_path / "comparison.toml"
    path.write_text('name = "x"\narms = ["mine.toml"]\n[arm-config.mine]\nlr-max = 0.25\n')
    _, (arm,) = read_comparison(path)
    assert arm.name == "my arm"
    assert arm.config(SMALL).lr_max == 0.25, "the comparison's own keys go before the arm's"


def test_a_job_that_fails_is_raised_and_named(tmp_path: Path, cache: None) -> None:
    comparison = small_comparison(
        arms=["co-learning"], num_seeds=1, config={**SMALL, "lr-max": 1e30}
    )
    with pytest.raises(QuorumError, match="round 1 has too few updates"):
        run_comparison(comparison, arms_of(comparison), tmp_path, workers=1)
    summary = json.loads((tmp_path / "co-learning/seed-1" / SUMMARY).read_text())
    assert summary["status"] == "stopped"
