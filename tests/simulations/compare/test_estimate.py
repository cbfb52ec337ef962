"""The time that a comparison is said to take: what it is based on, and what it counts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import RunConfig
from simulations.compare import estimate
from simulations.compare.announcement import timed, too_few_seeds
from simulations.compare.arm import ARMS_DIR, Arm, Protocol, load_arm
from simulations.compare.comparison_file import Comparison, Tuning
from simulations.compare.equal_budgets import configs_of
from simulations.compare.estimate import Estimate, estimated
from simulations.compare.job_files import job_folder, write_result
from simulations.results.outcome import Outcome
from tests.simulations import made_up

CONFIG: dict[str, Any] = {
    "dataset": "tests.simulations.numbers:numbers",
    "model": "tests.simulations.numbers:recorder",
    "num-sites": 4,
    "batch-size": 4,
    "validation-fraction": 0.2,
    "epoch-budget": 3,
    "local-epochs": 1,
}
TUNING = Tuning(num_seeds=2, grid={"lr-max": [0.1, 0.2]})


def given(*arms: str, **changes: Any) -> tuple[Comparison, list[Arm]]:
    comparison = Comparison(name="x", arms=list(arms), num_seeds=3, config=CONFIG, **changes)
    return comparison, [load_arm(arm, ARMS_DIR, {}) for arm in arms]


def estimate_of(output: Path, *arms: str, workers: int = 1, **changes: Any) -> Estimate:
    comparison, loaded = given(*arms, **changes)
    with ThreadPoolExecutor(1) as pool:
        return estimated(comparison, loaded, configs_of(comparison, loaded), output, workers, pool)


@pytest.fixture
def one_second_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step take a second, a step of larger batches ten, and an evaluation a thousand."""

    def step_seconds(config: RunConfig, protocol: Protocol) -> float:
        return 10.0 if protocol == "equal-steps" else 1.0

    monkeypatch.setattr(estimate, "_step_seconds", step_seconds)
    monkeypatch.setattr(estimate, "_evaluation_seconds", lambda config: 1000.0)


# 80 examples at four sites, of which four each are held out: 16 in batches of 4, four steps a pass.
@pytest.mark.parametrize(
    ("arm", "steps", "evaluations"),
    [
        ("centralized", 48, 3),
        ("centralized-equal-steps", 10 * 12, 3),
        ("centralized-equal-time", 12, 1),
        ("one-site", 12, 3),
        ("ensemble", 48, 12),
        ("co-learning", 48, 3),
        ("fedavg", 48, 3),
    ],
)
def test_the_time_is_that_of_all_steps_and_evaluations(
    tmp_path: Path, one_second_each: None, arm: str, steps: int, evaluations: int
) -> None:
    alone = ["co-learning"] if arm == "fedavg" else []
    found = estimate_of(tmp_path, arm, *alone)
    jobs = 3 * (1 + len(alone))
    assert (found.num_jobs, found.num_finished) == (jobs, 0)
    assert found.seconds == jobs * (steps + 1000 * evaluations)


def test_candidates_are_jobs_too_and_workers_share_them(
    tmp_path: Path, one_second_each: None
) -> None:
    found = estimate_of(tmp_path, "one-site", workers=2, tuning=TUNING)
    assert found.num_jobs == 2 * 2 + 3
    assert found.seconds == 7 * (12 + 3000) / 2
    assert estimate_of(tmp_path, "one-site", workers=50).seconds == 12 + 3000


def stored(output: Path, arm: str, seed: int, seconds: float, candidate: int | None = None) -> None:
    folder = job_folder(output, arm, seed, candidate)
    folder.mkdir(parents=True)
    write_result(folder, {}, Outcome([made_up.point(3, 0.5, seconds=seconds)]))


def test_an_arm_with_results_in_the_folder_takes_as_long_as_they_took(tmp_path: Path) -> None:
    stored(tmp_path, "one-site", 101, 2.0, 0)
    stored(tmp_path, "one-site", 1, 4.0)
    found = estimate_of(tmp_path, "one-site", tuning=TUNING)
    assert found == Estimate(5 * 3.0, 7, 2, f"2 earlier results in {tmp_path}")
    assert timed(found, 1).startswith("7 jobs, 2 of them finished: about 15.0 s with 1 worker (")


def test_tuning_with_less_work_has_times_of_its_own(tmp_path: Path) -> None:
    stored(tmp_path, "one-site", 101, 2.0, 0)
    stored(tmp_path, "one-site", 1, 4.0)
    smaller = TUNING.model_copy(update={"config": {"epoch-budget": 1}})
    found = estimate_of(tmp_path, "one-site", tuning=smaller)
    all_jobs = estimate_of(tmp_path, "one-site", tuning=TUNING)
    assert (found.num_jobs, found.num_finished) == (all_jobs.num_jobs, all_jobs.num_finished)
    assert found.seconds == 3 * 2.0 + 2 * 4.0


def test_a_step_and_an_evaluation_are_measured(tmp_path: Path) -> None:
    found = estimate_of(tmp_path, "centralized", "centralized-equal-steps")
    assert found.seconds > 0
    assert "ms for a step of 4 examples" in found.basis
    assert "ms for a step of 16 examples" in found.basis
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "said"),
    # Student's t at 97.5% for 1, 2 and 4 degrees of freedom: 12.706, 4.303 and 2.776.
    [(1, "1 gives no interval"), (2, "is 9.0 standard"), (3, "is 2.5 standard"), (5, "")],
)
def test_a_warning_names_too_few_seeds(count: int, said: str) -> None:
    text = too_few_seeds(count)
    assert said in text
    assert bool(text) == bool(said)
