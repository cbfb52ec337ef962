"""Comparisons: equal budgets, the same examples, nothing computed twice, nothing mixed up."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mdc_flower.config import RunConfig
from simulations.compare.arm import ARMS_DIR, load_arm
from simulations.compare.comparison_file import Comparison, Tuning, read_comparison
from simulations.compare.job_files import RESULT, Finished
from simulations.compare.jobs import Job, run_job
from simulations.compare.runner import results_of, run_comparison, shared_gpus, visible_gpus
from simulations.compare.tuning import ArmTuning
from simulations.compare.workers import VISIBLE_GPUS
from simulations.results.outcome import Outcome, Point
from simulations.results.tuning_tables import tuning_table
from strategies.common.errors import ConfigError, QuorumError, RunError
from strategies.round_loop import RoundLoop
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord
from strategies.storage.run_directory import SUMMARY, RunDirectory, read_events, read_history

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
    return output, {
        k: dict(v)
        for k, v in run_comparison(comparison, arms_of(comparison), output, 2).outcomes.items()
    }


def test_every_arm_uses_the_whole_budget_with_every_seed(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    _, outcomes = finished
    assert sorted(outcomes) == sorted(ARMS)
    for by_seed in outcomes.values():
        assert sorted(by_seed) == [1, 2]
        assert all(outcome.final.epochs == 4 for outcome in by_seed.values())


def test_fedavg_takes_the_rounds_of_co_learning(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    output, outcomes = finished
    # With epsilon 10 every round doubles: 1 + 2 + the 1 that is left of 4.
    assert outcomes["co-learning"][1].final.round == 3
    assert outcomes["fedavg"][1].final.round == 3
    history = read_history(output / "fedavg" / "seed-1")
    assert [line["plan"]["local_epochs"] for line in history] == [1, 1, 2]
    assert {line["plan"]["shape"] for line in history} == {"constant"}


def exchanged_bytes(point: Point) -> int:
    return point.sent_bytes + point.received_bytes


def test_only_arms_that_exchange_have_exchanged_bytes(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    _, outcomes = finished
    exchanged = {arm: exchanged_bytes(outcomes[arm][1].final) for arm in ARMS}
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
    done: list[tuple[int, int]] = []

    def on_done(job: Job, finished: Sequence[Finished], total: int) -> None:
        assert all(one.reused for one in finished)
        done.append((len(finished), total))

    comparison = small_comparison()
    again = run_comparison(comparison, arms_of(comparison), output, 2, on_done).outcomes
    assert again == outcomes
    assert [file.stat().st_mtime_ns for file in files] == before
    assert done == [(i, 8) for i in range(1, 9)]


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
    outcome = run_job(job).outcome
    assert (outcome.final.exchanges, exchanged_bytes(outcome.final)) == (1, 2 * 4810 * 4)
    assert [point.epochs for point in outcome.points] == [1, 2, 3, 4]
    assert run_job(job).outcome == outcome, "from the folder"


def test_a_results_folder_may_be_moved_and_the_data_too(
    finished: tuple[Path, dict[str, dict[int, Outcome]]], tmp_path: Path
) -> None:
    output, outcomes = finished
    moved = shutil.copytree(output / "co-learning" / "seed-1", tmp_path / "moved")
    job = job_in(moved, **{"data-root": "/elsewhere"})
    assert run_job(job).outcome == outcomes["co-learning"][1]


def test_a_runs_curve_is_its_history(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    output, outcomes = finished
    history = read_history(output / "co-learning" / "seed-1")
    points = outcomes["co-learning"][1].points
    assert [point.local_epochs for point in points] == [1, 2, 1]
    assert [point.relative_change for point in points] == [h["relative_change"] for h in history]
    assert [point.test["loss"] for point in points] == [
        h["evaluation"]["test-loss"] for h in history
    ]
    assert points[1].seconds == history[0]["seconds"] + history[1]["seconds"]


def test_a_run_with_averaged_models_is_judged_by_their_average(tmp_path: Path, cache: None) -> None:
    outcome = run_job(job_in(tmp_path / "job", **{"average-last": 2})).outcome
    averaged = json.loads((tmp_path / "job" / SUMMARY).read_text())["averaged"]
    last = read_history(tmp_path / "job")[-1]["evaluation"]
    assert outcome.final.test["loss"] == averaged["test-loss"] != last["test-loss"]


def test_a_recalibrated_run_is_judged_by_its_recalibrated_model_and_pays_for_it(
    tmp_path: Path, cache: None
) -> None:
    keys = {"model": "small-cnn", "max-train-examples": 60, "batch-norm": "recalibrate"}
    outcome = run_job(job_in(tmp_path / "job", **keys)).outcome
    told = json.loads((tmp_path / "job" / SUMMARY).read_text())["recalibration"]
    history = read_history(tmp_path / "job")
    assert outcome.final.test["loss"] == told["evaluation"]["test-loss"]
    assert outcome.final.test["loss"] != history[-1]["evaluation"]["test-loss"]
    assert (outcome.final.round, outcome.final.exchanges) == (3, 4)
    sent = sum(line["sent_bytes"] for line in history) + told["sent_bytes"]
    assert outcome.final.sent_bytes == sent
    spent = sum(line["seconds"] for line in history) + told["seconds"]
    assert outcome.final.seconds == pytest.approx(spent)
    assert told["seconds"] > 0


# Tuning

IN_TUNING: dict[str, Any] = {"max-train-examples": 120}


def rate_is_tuned(**changes: Any) -> Comparison:
    """Return a comparison in which 1e-9, the first candidate, teaches nothing."""
    tuning = Tuning(num_seeds=2, config=IN_TUNING, grid={"lr-max": [1e-9, 0.05]})
    return small_comparison(arms=["co-learning", "fedavg"], tuning=tuning, **changes)


def test_every_arm_is_tuned_on_the_validation_split_and_then_run_with_what_was_best(
    tmp_path: Path, cache: None
) -> None:
    comparison = rate_is_tuned(num_seeds=1)
    done: list[str] = []
    compared = run_comparison(
        comparison,
        arms_of(comparison),
        tmp_path,
        workers=2,
        on_done=lambda job, *_: done.append(job.label),
    )
    assert len(done) == 2 * 2 * 2 + 2
    assert "co-learning, seed 101, trying lr-max 1e-09" in done
    for arm in ("co-learning", "fedavg"):
        tuning = compared.tuning[arm]
        assert [sorted(by_seed) for by_seed in tuning.validation] == [[101, 102]] * 2
        assert tuning.values == {"lr-max": 0.05}
        stored = json.loads((tmp_path / arm / "seed-1" / RESULT).read_text())["config"]
        assert (stored["lr-max"], stored["max-test-examples"]) == (0.05, 0)
        assert stored["max-train-examples"] == SMALL["max-train-examples"]
        for path in (tmp_path / "tuning" / arm).rglob(RESULT):
            tried = json.loads(path.read_text())
            assert tried["config"]["max-test-examples"] == 1, "the test set stays out of it"
            assert tried["config"]["max-train-examples"] == 120, "tuning is on fewer examples"
            candidate = int(path.parent.parent.name.removeprefix("candidate-"))
            known = tuning.validation[candidate][tried["config"]["seed"]]
            assert known == tried["outcome"]["points"][-1]["validation"]["accuracy"]
    total = sum(
        json.loads(path.read_text())["outcome"]["points"][-1]["seconds"]
        for path in tmp_path.rglob(RESULT)
    )
    assert compared.seconds == pytest.approx(total)
    table = tuning_table(results_of(comparison, arms_of(comparison), compared, "test"))
    assert "Candidates were compared with max-train-examples 120." in table


def test_a_candidate_that_diverges_is_not_chosen_and_stops_nothing(
    tmp_path: Path, cache: None
) -> None:
    tuning = Tuning(num_seeds=1, grid={"lr-max": [1e30, 0.05]})
    comparison = small_comparison(arms=["co-learning"], num_seeds=1, tuning=tuning)
    for _ in range(2):  # the second time from the folder
        compared = run_comparison(comparison, arms_of(comparison), tmp_path, workers=1)
        tuned = compared.tuning["co-learning"]
        assert tuned.validation[0] == {101: None}
        assert tuned.values == {"lr-max": 0.05}
    written = results_of(comparison, arms_of(comparison), compared, "test")
    assert "lr-max 1e+30: diverged; **lr-max 0.05:" in tuning_table(written)


def test_if_all_candidates_diverge_the_arm_cannot_be_run() -> None:
    with pytest.raises(RunError, match="all candidates of an arm diverged"):
        _ = ArmTuning([{"lr-max": 1e30}], [{1: None}]).chosen


def test_of_equal_candidates_the_first_is_taken() -> None:
    tuning = ArmTuning(
        [{"lr-max": 0.1}, {"lr-max": 0.2}, {"lr-max": 0.3}],
        [{1: 0.5, 2: 0.6}, {1: 0.6, 2: 0.75}, {1: 0.75, 2: 0.6}],
    )
    assert tuning.values == {"lr-max": 0.2}


def test_the_facts_of_a_comparison(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    comparison = small_comparison()
    arms = arms_of(comparison)
    compared = run_comparison(comparison, arms, finished[0], 1)
    facts = results_of(comparison, arms, compared, "test").facts
    assert ([arm.key for arm in facts.arms], facts.seeds, facts.num_sites) == (ARMS, [1, 2], 2)
    # 4,810 parameters to and from 2 sites; 180 examples in batches of 32 at each: 3 steps a pass.
    assert {arm.per_step_bytes for arm in facts.arms} == {4810 * 4 * 2 * 2 * 3 * 4}
    config = facts.arms[1].config
    assert (config["ile-epsilon"], config["model"]) == (10.0, "mlp")
    assert not {"output-dir", "data-root", "seed"} & set(config)
    assert "num-rounds" not in facts.arms[2].config, "they differ from seed to seed"


def test_results_of_another_config_are_refused(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    output, outcomes = finished
    folder = output / "co-learning" / "seed-1"
    assert run_job(job_in(folder)).outcome == outcomes["co-learning"][1]
    with pytest.raises(ConfigError, match="a different config"):
        run_job(job_in(folder, **{"lr-max": 0.01}))


def without_seconds(outcome: Outcome) -> list[Point]:
    return [replace(point, seconds=0.0) for point in outcome.points]


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
    outcome = run_job(job).outcome
    whole = finished[1]["co-learning"][1]
    assert without_seconds(outcome) == without_seconds(whole)
    assert read_events(job.folder, "run-resumed")[0]["rounds_done"] == 2
    plans = [event["plan"]["round"] for event in read_events(job.folder, "round-started")]
    assert plans == [1, 2, 3], "no round is trained again"


def interrupt(*args: object, **kwargs: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "method"), [(RunDirectory, "begin"), (RoundLoop, "start")], ids=["begin", "start"]
)
def test_a_job_that_died_before_its_first_round_starts_again(
    tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    job = job_in(tmp_path / "job")
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_job(job)
    assert run_job(job).outcome.final.round == 3


@pytest.mark.parametrize("key", ["lr-max", "epoch-budget"])  # a single run may go on with the last
def test_an_interrupted_job_of_another_config_is_refused_and_left_as_it_is(
    tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RoundLoop, "start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_job(job_in(tmp_path / "job"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="the folder holds a result of a different config"):
        run_job(job_in(tmp_path / "job", **{key: 2}))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\narms = ["nope"]', "no such arm"),
        ('name = "x"\narms = []', "arms"),
        ('arms = ["fedavg", "co-learning"]', "name"),
        ('name = "x"\narms = ["co-learning"]\n[arm-config.fedavg]\nlr-max = 1.0', "arm-config.fed"),
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


def test_a_job_that_fails_is_raised_and_named(tmp_path: Path, cache: None) -> None:
    comparison = small_comparison(
        arms=["co-learning"], num_seeds=1, config={**SMALL, "lr-max": 1e30}
    )
    with pytest.raises(QuorumError, match="round 1 has too few updates") as caught:
        run_comparison(comparison, arms_of(comparison), tmp_path, workers=1)
    assert caught.value.__notes__ == [
        "in the job co-learning, seed 1",
        f"Finished jobs are kept. To continue, run the same command with --output {tmp_path}",
    ]
    summary = json.loads((tmp_path / "co-learning/seed-1" / SUMMARY).read_text())
    assert summary["status"] == "stopped"


@pytest.mark.parametrize(
    ("count", "named", "gpus"),
    [
        (0, None, []),
        (3, None, ["0", "1", "2"]),
        (2, "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
        (1, "5,-1,6", ["5"]),
    ],
)
def test_the_gpus_of_the_machine_are_those_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, count: int, named: str | None, gpus: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv(VISIBLE_GPUS, raising=False)
    if named is not None:
        monkeypatch.setenv(VISIBLE_GPUS, named)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(
    ("devices", "gpus"),
    [(["auto", "cuda"], ["0", "1"]), (["auto", "cuda:1"], []), (["cpu"], [])],
)
def test_the_gpus_are_shared_out_unless_a_config_names_one(
    monkeypatch: pytest.MonkeyPatch, devices: list[str], gpus: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE_GPUS, raising=False)
    assert shared_gpus({device: [RunConfig(device=device)] for device in devices}) == gpus
