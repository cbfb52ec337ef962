"""The FedAvg class of Flower as an arm: the same models as our FedAvg, and nothing hidden."""

from pathlib import Path
from typing import Any, NoReturn

import pytest

from simulations.compare import flower_fedavg
from simulations.compare.arm import ARMS_DIR, load_arm
from simulations.compare.jobs import Job, run_job
from simulations.results.outcome import Outcome
from strategies.common.errors import ConfigError, ModelError

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "max-train-examples": 120,
    "model": "small-cnn",
    "num-sites": 3,
    "partition": "size-skew",
    "partition-size-ratio": 3.0,
    "batch-size": 8,
    "epoch-budget": 4,
    "lr-max": 0.05,
}


def outcome_of(arm: str, folder: Path, **keys: Any) -> Outcome:
    one = load_arm(arm, ARMS_DIR, {"batch-norm": "average"})
    config = one.config({**SMALL, **keys}, seed=1, num_rounds=3, output_dir=str(folder / arm))
    return run_job(Job(one, 1, config, folder / arm)).outcome


@pytest.mark.parametrize(
    "keys",
    [{}, {"epoch-budget": 0, "step-budget": 9, "local-steps": 3}],
    ids=["epochs", "steps"],
)
def test_flowers_fedavg_and_ours_train_the_same_models_from_round_to_round(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    ours = outcome_of("fedavg", tmp_path, **keys)
    flowers = outcome_of("flower-fedavg", tmp_path, **keys)
    assert len(flowers.points) == 3
    for mine, other in zip(ours.points, flowers.points, strict=True):
        # Only the order of the sums differs.
        assert other.test["loss"] == pytest.approx(mine.test["loss"], rel=1e-4)
        assert other.validation["loss"] == pytest.approx(mine.validation["loss"], rel=1e-4)
        assert (other.round, other.exchanges, other.epochs, other.local_epochs, other.lr_max) == (
            mine.round, mine.exchanges, mine.epochs, mine.local_epochs, mine.lr_max
        )  # fmt: skip
        assert (other.steps, other.examples) == (mine.steps, mine.examples)
        assert other.sent_bytes == pytest.approx(mine.sent_bytes, rel=0.05)
        assert other.received_bytes == pytest.approx(mine.received_bytes, rel=0.05)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, again = (outcome_of("flower-fedavg", tmp_path / name) for name in "ab")
    assert [point.test for point in first.points] == [point.test for point in again.points]


def test_a_site_that_fails_is_an_error_although_flower_only_logs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> NoReturn:
        raise ModelError("the memory is full")

    monkeypatch.setattr(flower_fedavg, "train", fail)
    with pytest.raises(ModelError, match="the memory is full"):
        outcome_of("flower-fedavg", tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("outer-optimizer", "momentum"),
        ("weighting", "uniform"),
        ("exchange", "trainable"),
        ("batch-norm", "recalibrate"),
        ("average-last", 2),
        ("epochs", "ile"),
    ],
)
def test_what_flowers_fedavg_does_not_do_is_refused_by_name(key: str, value: Any) -> None:
    config = load_arm("flower-fedavg", ARMS_DIR, {key: value}).config(SMALL, num_rounds=3)
    with pytest.raises(ConfigError, match="the FedAvg of Flower") as caught:
        flower_fedavg.check_flowers_fedavg(config, "arm theirs")
    assert (caught.value.where, caught.value.got) == (f"arm theirs, {key}", value)
