"""From the name in a config to a checked data set."""

from pathlib import Path

import pytest
from PIL import Image

from mdc_flower.data import DataSet, load_dataset
from mdc_flower.data.readers.builtin import BUILTIN
from mdc_flower.data.readers.options import Reading
from mdc_flower.data.registry import data_folder
from strategies.common.errors import ConfigError, DataError

LAB = """
import numpy as np
from mdc_flower.data import DataSet, Examples

calls = []

def examples(count):
    return Examples(np.zeros((count, 1), np.float32), np.arange(count) % 2)

def good():
    calls.append(1)
    return DataSet("lab", examples(40), examples(20), ["no", "yes"])

def bad():
    return DataSet("lab", examples(4), examples(0), ["no", "yes"])

def other():
    return [1, 2, 3]
"""


@pytest.fixture(autouse=True)
def registry_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a user's module where Python finds it."""
    (tmp_path / "registry_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_built_in_names_are_these() -> None:
    assert list(BUILTIN) == ["digits", "fashion-mnist", "cifar10", "cifar100"]


def test_a_built_in_data_set_is_found_by_its_name() -> None:
    assert load_dataset("digits").name == "digits"


def test_a_built_in_data_set_is_given_the_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    roots: list[str] = []

    def load(data_root: str) -> DataSet:
        roots.append(data_root)
        return load_dataset("registry_lab:good")

    monkeypatch.setitem(BUILTIN, "cifar10", load)
    assert load_dataset("cifar10", "/some/where").name == "lab"
    assert roots == ["/some/where"]


def test_a_users_function_is_found_by_its_module() -> None:
    assert load_dataset("registry_lab:good").name == "lab"


def test_an_image_folder_is_found_by_its_path_and_resized(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            image = Image.new("RGB", (5, 5), "red" if split == "test" else "blue")
            image.save(tmp_path / "images" / split / name / "1.png")
    spec = f"image-folder:{tmp_path / 'images'}"
    assert load_dataset(spec).input_shape == (3, 5, 5)
    assert load_dataset(spec, reading=Reading(image_size=8)).input_shape == (3, 8, 8)
    assert load_dataset("image-folder:images", str(tmp_path)).input_shape == (3, 5, 5)
    assert load_dataset(spec, "/elsewhere").input_shape == (3, 5, 5), "an absolute path is one"
    with pytest.raises(DataError, match="not absolute"):
        load_dataset("image-folder:images")


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        ("image-folder:/scans", "/scans"),
        ("text-folder:/notes", "/notes"),
        ("audio-manifest:/heart/sounds.csv", "/heart"),
        ("hf:/copies/sst2", "/copies/sst2"),
        ("hf:stanfordnlp/sst2", ""),
        ("my_lab:load", ""),
        ("digits", ""),
    ],
)
def test_the_folder_of_the_files_is_read_off_the_name(spec: str, folder: str) -> None:
    assert data_folder(spec) == folder
    assert data_folder(spec, "/elsewhere") == folder


def test_a_relative_folder_is_one_from_data_root() -> None:
    assert data_folder("audio-manifest:heart/sounds.csv", "/data") == "/data/heart"
    assert data_folder("image-folder:scans") == ""


def test_a_data_set_is_cut_to_its_limits() -> None:
    data = load_dataset("registry_lab:good", max_train=10, max_test=6)
    assert (len(data.train), len(data.test)) == (10, 6)


def test_repeated_calls_in_a_process_return_the_same_data_set() -> None:
    assert load_dataset("registry_lab:good") is load_dataset("registry_lab:good")
    limited = load_dataset("registry_lab:good", max_train=10)
    assert limited is not load_dataset("registry_lab:good")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("digit", "Did you mean 'digits'?"),
        ("fashion_mnist", "Did you mean 'fashion-mnist'?"),
        ("cifar1000", "Did you mean 'cifar100'?"),
        ("xyzzy", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_all_of_them(spec: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="no such data set") as caught:
        load_dataset(spec)
    error = caught.value
    assert (error.where, error.got, error.hint) == ("dataset", spec, hint)
    assert error.expected == (
        "one of: digits, fashion-mnist, cifar10, cifar100, image-folder:/abs/path, "
        "audio-folder:/abs/path, audio-manifest:/abs/path, text-folder:/abs/path, "
        "hf:NAME, module:function"
    )


@pytest.mark.parametrize("spec", ["registry_lab:nothing", "no_such_lab:load", "registry_lab:"])
def test_a_function_that_is_not_there_is_refused_with_the_key(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(spec)
    assert (caught.value.where, caught.value.got) == ("dataset", spec)


def test_a_function_that_returns_something_else_is_refused() -> None:
    with pytest.raises(DataError, match="did not return a DataSet") as caught:
        load_dataset("registry_lab:other")
    assert (caught.value.where, caught.value.got) == ("dataset = 'registry_lab:other'", "list")


def test_a_data_set_that_breaks_the_contract_is_refused() -> None:
    with pytest.raises(DataError, match="there are no examples") as caught:
        load_dataset("registry_lab:bad")
    assert caught.value.where == "data set 'lab', test"
