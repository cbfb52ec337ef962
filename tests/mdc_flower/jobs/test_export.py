"""`mdc export`: a program that gives the model's probabilities for raw inputs, without our code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mdc_flower.config import read_run_config
from mdc_flower.data import load_dataset
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.export import ABOUT
from mdc_flower.jobs.prediction import trained_model
from tests import tiny
from tests.mdc_flower.commands import mdc

DIGITS: dict[str, Any] = {"model": "small-cnn", "max-train-examples": 60, "epochs": "fixed"}


@pytest.mark.parametrize(
    "keys",
    [{**DIGITS, "precision": "none"}, tiny.KEYS | {"model": "tests.tiny:normalized"}],
    ids=["images", "vectors"],
)
def test_a_program_gives_the_probabilities_of_the_model(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    run, file = tmp_path / "run", tmp_path / "model.pt2"
    once = {"local-epochs": 1, "epoch-budget": 1, "output-dir": str(run)}
    config = read_run_config({**keys, **once})
    run_in_process(config, 2)
    result = mdc("export", run, "--output", file)
    assert result.exit_code == 0, result.output
    extra = {ABOUT: ""}
    program = torch.export.load(file, extra_files=extra).module()
    inputs = load_dataset(config.dataset).test.inputs[:7]
    model = trained_model(run)
    found = program(torch.from_numpy(inputs.copy())).detach().double().numpy()
    assert found == pytest.approx(model.predict(inputs).probabilities, abs=1e-5)
    assert json.loads(extra[ABOUT])["class-names"] == model.class_names
    refused = mdc("export", run, "--output", tmp_path / "model.onnx")
    assert refused.exit_code == 2
    assert ".pt2" in refused.output
