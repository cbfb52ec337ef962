"""Three processes that train one model: what they save is complete, and restores the same bits."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.training.runtime import ONE
from strategies.storage.model_files import StoredArrays, read_model
from tests.mdc_flower.training import rank_states
from tests.mdc_flower.training.rank_states import SETTINGS, carried_again

pytestmark = pytest.mark.integration

WAYS = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what three processes compute."""
    folder: Path = tmp_path_factory.mktemp("states")
    rank_states.alone(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "3", "-m", "tests.mdc_flower.training.rank_states", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def result(folder: Path, stem: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    arrays, about = read_model(folder / f"{stem}.safetensors")
    return {name: array.tobytes() for name, array in arrays.items()}, about


def state(folder: Path) -> StoredArrays:
    (path,) = folder.glob("*.optimizer.*")
    return StoredArrays(path)


def bits(arrays: StoredArrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SETTINGS)
def test_training_continues_after_a_saved_epoch_with_the_same_bits(
    folder: Path, name: str, way: str, last: int
) -> None:
    assert result(folder, f"{name}-{way}-{last}") == result(folder, f"{name}-{way}-0")
    own = folder / f"{name}-{way}"
    assert bits(state(own / str(last) / "state")) == bits(state(own / "0" / "state"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SETTINGS)
def test_an_optimizers_state_is_complete_and_fits_any_number_of_processes(
    folder: Path, name: str, way: str
) -> None:
    by_three, by_one = folder / f"{name}-{way}" / "0" / "state", folder / name
    written, alone = state(by_three), state(by_one)
    shapes = [{key: array.shape for key, array in of.items()} for of in (written, alone)]
    assert shapes[0] == shapes[1]
    assert written.metadata == alone.metadata
    assert result(folder, f"{name}-{way}-itself")[0] == bits(written)
    assert result(folder, f"{name}-{way}-one")[0] == bits(alone)
    again = carried_again(ONE, name, by_three)
    assert {key: array.tobytes() for key, array in again.items()} == bits(written)


@pytest.mark.parametrize("way", WAYS)
def test_if_the_first_process_cannot_read_or_write_all_fail_alike_and_go_on(
    folder: Path, way: str
) -> None:
    first, *others = result(folder, f"failures-{way}")[1]["seen"]
    assert first == ["StateMissingError", "ValueError", "KeyError"]
    assert others == [["EngineError", "KeyError", "EngineError"]] * 2
