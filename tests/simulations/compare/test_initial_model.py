"""A comparison with `initial-model`: all arms start from the weights in the file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from simulations.compare.arm import ARMS_DIR, load_arm
from simulations.compare.comparison_file import Comparison
from simulations.compare.equal_budgets import configs_of
from simulations.compare.job_files import description
from simulations.compare.jobs import Job, run_job
from strategies.common.errors import ConfigError
from tests import tiny

ARMS = (
    "centralized",
    "centralized-equal-steps",
    "co-learning",
    "fedavg",
    "flower-fedavg",
    "one-site",
    "ensemble",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file with weights that get every example right."""
    weights = {"weight": torch.tensor([[-9.0, 0, 0, 0], [9.0, 0, 0, 0]]), "bias": torch.zeros(2)}
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def job_of(arm: str, folder: Path, file: Path, **keys: Any) -> Job:
    one = load_arm(arm, ARMS_DIR, {})
    own = {key: tiny.KEYS[key] for key in ("dataset", "model", "batch-size", "epoch-budget")}
    still = {"lr-max": 1e-9, "num-sites": 2, "initial-model": str(file), **keys}
    rounds = {"num-rounds": 2} if one.table.rounds_of or arm == "flower-fedavg" else {}
    config = one.config({**own, **still}, seed=1, output_dir=str(folder / arm), **rounds)
    return Job(one, 1, config, folder / arm)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_begins_with_the_model_in_the_file(arm: str, tmp_path: Path, file: Path) -> None:
    first = run_job(job_of(arm, tmp_path, file)).outcome.points[0]
    assert first.test["accuracy"] == 1, "without training"
    # The mean cross-entropy of these weights on the test vectors.
    inputs = torch.from_numpy(tiny.vectors().test.inputs[:, 0])
    loss = torch.nn.functional.softplus(-18 * inputs.abs()).mean()
    assert first.test["loss"] == pytest.approx(float(loss), rel=1e-3)


def test_a_stored_result_belongs_to_the_content_of_the_file(tmp_path: Path, file: Path) -> None:
    config = job_of("centralized", tmp_path, file).config
    before = description("centralized", config)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(file.read_bytes())
    elsewhere = config.model_copy(update={"initial_model": str(moved)})
    assert description("centralized", elsewhere) == before
    save_file({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, file)
    assert description("centralized", config) != before
    without = config.model_copy(update={"initial_model": ""})
    assert "initial-model" not in description("centralized", without)["config"]


def test_no_arm_may_have_another_initial_model_than_the_others(file: Path) -> None:
    comparison = Comparison(
        name="unequal",
        arms=["centralized", "fedavg"],
        config={**tiny.KEYS, "num-sites": 2, "initial-model": str(file)},
    )
    arms = [
        load_arm("centralized", ARMS_DIR, {}),
        load_arm("fedavg", ARMS_DIR, {"initial-model": "/another.safetensors"}),
    ]
    with pytest.raises(ConfigError) as caught:
        configs_of(comparison, arms)
    assert "initial-model" in caught.value.where
