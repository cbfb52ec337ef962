"""Comparisons: equal budgets, the same examples, nothing computed twice, nothing mixed up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdc_flower.config import read_site_config
from mdc_flower.task import load_task
from simulations.arm import ARMS_DIR, load_arm
from simulations.baselines import Outcome, train_without_exchange
from simulations.comparison import RESULT, Comparison, Job, read_comparison, run_comparison
from strategies.errors import ConfigError
from strategies.journal import read_history

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


def test_results_of_another_config_are_refused(
    finished: tuple[Path, dict[str, dict[int, Outcome]]],
) -> None:
    output, _ = finished
    comparison = small_comparison(config={**SMALL, "lr-max": 0.01})
    with pytest.raises(ConfigError, match="another config"):
        run_comparison(comparison, arms_of(comparison), output, workers=1)


def test_an_interrupted_job_starts_again(tmp_path: Path, cache: None) -> None:
    folder = tmp_path / "co-learning" / "seed-1"
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text('{"half": ')
    comparison = small_comparison(arms=["co-learning"], num_seeds=1)
    outcomes = run_comparison(comparison, arms_of(comparison), tmp_path, workers=1)
    assert outcomes["co-learning"][1].rounds == 3


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
    with pytest.raises(Exception, match="no round had a reply that counts"):
        run_comparison(comparison, arms_of(comparison), tmp_path, workers=1)
    assert json.loads((tmp_path / "co-learning/seed-1/summary.json").read_text())["error"]
