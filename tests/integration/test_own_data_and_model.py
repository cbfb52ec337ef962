"""A user's own data set and model, as in the recipes of CONTRIBUTING.md."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mdc_flower.data import DataSet
from mdc_flower.data.registry import load_dataset
from strategies.storage.run_directory import read_history
from tests.documentation import code_blocks
from tests.integration.conftest import summary_of
from tests.integration.test_readme import ROOT, shell, user_env

RECIPES = (ROOT / "CONTRIBUTING.md").read_text().partition("## Recipes")[2]
blocks = partial(code_blocks, RECIPES)


def written(folder: Path) -> list[str]:
    """Write each Python block to the file named in its first line; return the file names."""
    names = []
    for block in blocks("python"):
        named = re.match(r"# (\w+\.py)\n", block)
        assert named, block
        (folder / named[1]).write_text(block)
        names.append(named[1])
    return names


def test_the_recipes_hold_two_files_and_two_commands() -> None:
    (commands,) = blocks("sh")
    run, evaluate = commands.splitlines()
    assert run.startswith("mdc run --engine in-process ")
    assert evaluate == "mdc evaluate runs/own"
    assert len(blocks("python")) == 2


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """Return the data set of the recipe."""
    written(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return load_dataset("my_data:diabetes")


def test_the_statistics_are_those_of_the_training_examples(dataset: DataSet) -> None:
    inputs = np.asarray(dataset.train.inputs, np.float64)
    assert np.round(inputs.mean(0), 1).tolist() == list(dataset.mean)
    assert np.round(inputs.std(0), 1).tolist() == list(dataset.std)
    assert (len(dataset.train), len(dataset.test)) == (295, 147)
    assert dataset.train.groups is not None
    assert np.unique(dataset.train.groups).tolist() == [0, 1, 2, 3]


@pytest.mark.integration
def test_the_commands_train_a_users_model_on_a_users_data(tmp_path: Path) -> None:
    env = user_env(tmp_path)
    assert written(tmp_path) == ["my_data.py", "my_model.py"]
    for command in blocks("sh")[0].splitlines():
        shell(command, tmp_path, env)
    run_dir = tmp_path / "runs" / "own"
    summary = summary_of(run_dir)
    assert summary["status"] == "finished"
    # The larger class has 75 of the 147 test examples. The number of correct guesses has a standard
    # deviation of 6.1; 93 is three of them above 75.
    assert summary["final"]["test-accuracy"] > 93 / 147
    assert len(summary["sites"]) == 4
    assert len(read_history(run_dir)) > 1
