"""``module:function``: found, or refused with what is wrong and what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from mdc_flower.common.references import add_users_folder, load_reference
from mdc_flower.data import load_dataset
from mdc_flower.engines.flower_processes import environment
from mdc_flower.models import build_model
from strategies.common.errors import ConfigError

SOURCE = """
def seven():
    return 7

number = 7
"""


@pytest.fixture(autouse=True)
def my_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a user's modules where Python finds them."""
    (tmp_path / "reference_lab.py").write_text(SOURCE)
    (tmp_path / "reference_needs.py").write_text("import a_library_that_is_not_here\n")
    (tmp_path / "reference_typo.py").write_text("number = 7\ndef seven(:\n    return 7\n")
    (tmp_path / "reference_pack").mkdir()
    (tmp_path / "reference_pack" / "__init__.py").touch()
    (tmp_path / "reference_pack" / "inner.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("module", ["reference_lab", "reference_pack.inner"])
def test_a_function_is_found_by_its_module_and_name(module: str) -> None:
    assert load_reference(f"{module}:seven", "dataset")() == 7


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("reference_nowhere:load", "module 'reference_nowhere' cannot be imported"),
        ("reference_needs:load", "No module named 'a_library_that_is_not_here'"),
        ("reference_typo:seven", "invalid syntax (reference_typo.py, line 2)"),
        ("reference_lab:eight", "module 'reference_lab' has no function 'eight'"),
        ("reference_lab:number", "module 'reference_lab' has no function 'number'"),
        ("reference_lab:", "module 'reference_lab' has no function ''"),
        (":seven", "cannot be imported"),
        (".reference_lab:seven", "cannot be imported"),
    ],
)
def test_what_is_not_there_is_refused_by_name(reference: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_reference(reference, "dataset")
    assert named in str(caught.value)
    assert (caught.value.where, caught.value.got) == ("dataset", reference)


def test_a_relative_path_that_leads_nowhere_is_answered_with_the_folder_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reference_files.py").write_text(
        "import torch\n"
        "def net(shape, classes):\n"
        "    return torch.load('weights/backbone.pt', weights_only=False)\n"
        "def data():\n"
        "    return open('scans/index.csv')\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ConfigError) as caught:
        build_model("reference_files:net", (1, 8, 8), 10, seed=1)
    assert (caught.value.where, caught.value.got) == ("model", "weights/backbone.pt")
    assert f"runs in {elsewhere}" in caught.value.hint
    assert "absolute path" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        load_dataset("reference_files:data")
    assert (caught.value.where, caught.value.got) == ("dataset", "scans/index.csv")


def test_an_absolute_path_that_leads_nowhere_is_the_users_own_affair(tmp_path: Path) -> None:
    (tmp_path / "reference_absolute.py").write_text(
        "def data():\n    return open('/nowhere/index.csv')\n"
    )
    with pytest.raises(FileNotFoundError, match=r"/nowhere/index\.csv"):
        load_dataset("reference_absolute:data")


def test_a_module_that_is_not_found_is_answered_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="PYTHONPATH, at the coordinator and every site"):
        load_reference("reference_nowhere:load", "model")


def test_the_folder_of_a_user_comes_last_here_and_in_what_is_started(
    tmp_path: Path, process_state: None
) -> None:
    """Files with the names of libraries, one of Python's own and one that is installed."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("types", "selectors", "datasets"):
        (folder / f"{name}.py").write_text("raise ImportError('the user has this name, too')")
    (folder / "reference_own.py").write_text(SOURCE)
    add_users_folder(str(folder))
    assert sys.path[-1] == str(folder)
    code = (
        "import datasets, selectors, types\n"
        "from mdc_flower.common.references import load_reference\n"
        "print(load_reference('reference_own:seven', 'dataset')())\n"
    )
    env = {**environment(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("7\n", 0), done.stderr


def test_a_library_in_place_of_a_users_own_module_is_named() -> None:
    with pytest.raises(ConfigError, match=r"has no function 'load_own'.* was imported from .*json"):
        load_reference("json:load_own", "dataset")
