"""`initial-model`: a run starts from weights in a file, each checked; it is held on resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.coordinator.resume import check_resumable
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.initial_model import differences, file_digest, initialized
from strategies.common.errors import ConfigError, MdcError, ModelError
from strategies.storage.model_files import StoredArrays
from strategies.storage.run_directory import (
    GLOBAL_MODEL,
    read_events,
    read_history,
    read_summary,
)
from tests import tiny, tiny_jobs

STILL = {"lr-max": 1e-9, "site-evaluation": True}
"""Training that changes nothing that can be seen."""


def config_of(file: Path | str, **keys: Any) -> RunConfig:
    return read_run_config({**tiny.KEYS, "initial-model": str(file), **keys})


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def state(**changes: Any) -> dict[str, Any]:
    """Return a state dict of the network; a value None leaves an array out."""
    named = {name.replace("_", ".", 1): value for name, value in changes.items()}
    return {n: v for n, v in {**network().state_dict(), **named}.items() if v is not None}


def written(folder: Path, arrays: dict[str, Any]) -> Path:
    save_file(arrays, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def test_a_model_gets_the_arrays_of_a_file_of_any_program(tmp_path: Path) -> None:
    model, other = network(), network()
    save_model(other, str(tmp_path / "weights.safetensors"))
    initialized(model, config_of(tmp_path / "weights.safetensors"))
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_tied_weights_may_have_any_of_their_names(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
        return model

    own, other = tied(), tied()
    values = {name: of.clone() for name, of in other.state_dict().items()}
    del values["0.weight"]
    initialized(own, config_of(written(tmp_path, values)))
    assert torch.equal(own.get_parameter("0.weight"), other.get_parameter("0.weight"))
    values["0.weight"] = values["1.weight"] + 1
    with pytest.raises(ModelError, match="one array in the model, but two in the file"):
        initialized(own, config_of(written(tmp_path, values)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"0_weight": None}, "array '0.weight' is missing"),
        ({"0_weigth": torch.zeros(3, 4)}, "no array '0.weigth'.*nearest.*'0.weight'"),
        ({"2_bias": torch.zeros(3)}, r"'2.bias' does not match.*float32\[3\].*float32\[2\]"),
        ({"2_bias": torch.zeros(2).half()}, "'2.bias' does not match.*float16"),
        ({"2_bias": torch.tensor([0.0, np.nan])}, "'2.bias' has values that are not finite"),
    ],
)
def test_an_array_that_does_not_match_is_named(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    file = written(tmp_path, state(**changes))
    with pytest.raises(ModelError, match=said) as caught:
        initialized(network(), config_of(file))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 a pickle of torch.save"])
def test_a_file_that_is_no_safetensors_file_is_bad_input(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "weights.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="save_model") as caught:
        initialized(network(), config_of(file))
    assert caught.value.exit_code == 2


def test_arrays_that_are_not_exchanged_must_be_those_that_every_site_builds(
    tmp_path: Path,
) -> None:
    model = network()
    model[0].requires_grad_(False)
    keys = {"exchange": "2.*, 1.*"}
    partly = {name: value for name, value in state().items() if name[0] != "0"}
    initialized(model, config_of(written(tmp_path, partly), **keys))
    assert torch.equal(model.get_parameter("2.weight"), partly["2.weight"])
    own = {f"0.{name}": value for name, value in model[0].state_dict().items()}
    initialized(model, config_of(written(tmp_path, partly | own), **keys))
    with pytest.raises(ModelError, match=r"'0\..*' is not exchanged"):
        initialized(model, config_of(written(tmp_path, state()), **keys))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that has learned the vectors."""
    folder = tmp_path_factory.mktemp("trained")
    keys = {"output-dir": str(folder), "epoch-budget": 20, "local-epochs": 10, "lr-max": 0.5}
    run_in_process(read_run_config({**tiny.KEYS, **keys}), 2)
    assert read_summary(folder)["final"]["test-loss"] < 0.3
    return folder


def begun(folder: Path, file: Path, **keys: Any) -> Path:
    output = folder / "run"
    run_in_process(config_of(file, **{**STILL, "output-dir": str(output), **keys}), 2)
    return output


def test_a_run_begins_with_the_accuracy_of_the_model_in_the_file(
    trained: Path, tmp_path: Path
) -> None:
    run = begun(tmp_path, trained / GLOBAL_MODEL, seed=5)
    summary, before = read_summary(run), read_summary(trained)["final"]
    told = summary["initial-model"]
    assert told["evaluation"]["test-loss"] == before["test-loss"]
    assert told["sha256"] == file_digest(config_of(trained / GLOBAL_MODEL))
    assert read_events(run, "run-started")[-1]["initial-model"] == told
    first = read_history(run)[0]
    assert first["start_evaluation"]["validation-accuracy"] == 1, "at the sites"
    assert first["evaluation"]["test-loss"] == pytest.approx(before["test-loss"], rel=1e-4)
    assert not read_events(run, "warning")


def test_a_users_job_starts_from_a_file_too(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-9.0, 0, 0, 0], [9.0, 0, 0, 0]]))
        model.bias.zero_()
    file = written(tmp_path, model.state_dict())
    keys = {**tiny_jobs.KEYS, "job": "tests.tiny_jobs:classification", "model": "small-cnn"}
    summary = read_summary(begun(tmp_path, file, **keys))
    assert summary["initial-model"]["evaluation"]["validation-accuracy"] == 1
    assert summary["final"]["validation-accuracy"] == 1


def test_a_run_warns_if_the_weights_were_trained_with_other_classes(trained: Path) -> None:
    config = config_of(trained / GLOBAL_MODEL)
    own = StoredArrays(trained / GLOBAL_MODEL).metadata
    assert differences(config, own) == []
    assert differences(config, own | {"class-names": ["high", "low"]}) == ["class-names"]


def test_a_resumed_run_keeps_its_beginning_and_refuses_another_file(
    trained: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes((trained / GLOBAL_MODEL).read_bytes())
    run = begun(tmp_path, file)
    told = read_summary(run)["initial-model"]
    more: dict[str, Any] = {"resume": True, "epoch-budget": 3, "output-dir": str(run)}
    save_file(nn.Linear(4, 2).state_dict(), file)
    with pytest.raises(MdcError, match="has changed since the run began"):
        run_in_process(config_of(file, **STILL, **more), 2)
    file.unlink()  # the checkpoint has the model
    run_in_process(config_of(file, **STILL, **more), 2)
    assert read_summary(run)["initial-model"] == told
    assert len(read_history(run)) == 3


def test_a_run_without_a_file_cannot_go_on_with_one() -> None:
    before = {"config": RunConfig().to_flower(), "version": "0.1", "partition": None}
    with pytest.raises(ConfigError, match="cannot change this key"):
        check_resumable(before, read_run_config({"initial-model": "/weights.safetensors"}), None)
