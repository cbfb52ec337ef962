"""The data contract: refused by key where it is wrong, and kept or not kept by a data set."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from mdc_flower.data import DataSet, Examples, load_dataset
from mdc_flower.data.contract import CONTRACT, Contract, read_contract
from mdc_flower.data.readers.options import AudioReading, Reading, TextReading
from strategies.common.errors import ConfigError, DataError

VALUES: dict[str, Any] = {
    "name": "chest x-rays",
    "type": "uint8",
    "shape": [3, 4, 4],
    "classes": ["healthy", "pneumonia", "other"],
    "mean": [0.5, 0.25, 0.125],
    "std": [1.0, 2.0, 4.0],
}
SOUND: dict[str, Any] = {
    "type": "float32",
    "shape": [1, 40, 151],
    "sample-rate": 8000,
    "mean": [-10.0],
    "std": [5.0],
}
WORDS: dict[str, Any] = {
    "type": "int64",
    "shape": [4],
    "num-tokens": 9,
    "vocabulary": "0123456789abcdef" * 4,
    "mean": [],
    "std": [],
}


def contract(**changes: Any) -> Contract:
    return Contract.read(VALUES | changes, "here")


def dataset(
    kind: str = "uint8",
    shape: tuple[int, ...] = (3, 4, 4),
    classes: tuple[str, ...] = ("healthy", "pneumonia", "other"),
    count: int = 6,
) -> DataSet:
    examples = Examples(np.ones((count, *shape), kind), np.arange(count) % len(classes))
    return DataSet("my scans", examples, examples, classes, (0.9,), (0.7,)).checked()


# Reading


def test_a_contract_is_read_from_its_table(tmp_path: Path) -> None:
    path = tmp_path / "contract.toml"
    path.write_text(tomli_w.dumps({"contract": VALUES, "other": {"key": 1}}))
    assert read_contract(path) == contract()
    assert contract().shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("changes", "where", "named"),
    [
        ({"name": ""}, "here, name", "at least 1 character"),
        ({"type": "float64"}, "here, type", "'uint8', 'float32' or 'int64'"),
        ({"shape": []}, "here, shape", "at least 1 item"),
        ({"shape": [3, 0]}, "here, shape.1", "greater than or equal to 1"),
        ({"shape": [3, 1.5]}, "here, shape.1", "got 1.5"),
        ({"classes": ["one"]}, "here, classes", "at least 2 items"),
        ({"classes": ["a", "b", "a"]}, "here", "two classes have the same name"),
        ({"classes": [0, 1]}, "here, classes.0", "valid string"),
        ({"mean": [0.5, 0.5]}, "here", "mean and std must have 3 values each, or none"),
        ({"mean": []}, "here", "mean and std must have 3 values each, or none"),
        ({"mean": [0.5] * 2, "std": [0.5] * 2}, "here", "must have 3 values each"),
        ({"mean": [0.5, 0.5, math.nan]}, "here, mean.2", "finite number"),
        ({"mean": [0.5, 0.5, math.inf]}, "here, mean.2", "finite number"),
        ({"std": [1.0, 0.0, 1.0]}, "here, std.1", "greater than 0"),
        ({"std": [1.0, 1.0, math.inf]}, "here, std.2", "finite number"),
        ({"shapes": [3]}, "here, shapes", "Did you mean 'shape'?"),
        ({"sample-rate": -1}, "here, sample-rate", "got -1"),
        ({"sample-rate": 8000}, "here", "shape [1, mels, frames]"),
        ({**SOUND, "shape": [40, 101]}, "here", "shape [1, mels, frames]"),
        ({"num-tokens": 9}, "here", "num-tokens and vocabulary need type 'int64'"),
        ({"vocabulary": "0" * 64}, "here", "num-tokens and vocabulary need type 'int64'"),
        ({**WORDS, "num-tokens": -1}, "here, num-tokens", "got -1"),
        ({**WORDS, "vocabulary": "A" * 64}, "here, vocabulary", "match pattern"),
        ({**SOUND, "sample-rate": 8}, "here", "in Hz, and must be at least 1000"),
    ],
)
def test_a_contract_that_cannot_be_is_refused_by_key(
    changes: dict[str, Any], where: str, named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        contract(**changes)
    assert caught.value.where == where
    assert named in str(caught.value)


@pytest.mark.parametrize("key", ["name", "type", "shape", "classes"])
def test_a_contract_without_a_key_that_has_no_default_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="Field required") as caught:
        Contract.read({k: v for k, v in VALUES.items() if k != key}, "here")
    assert caught.value.where == f"here, {key}"


def test_statistics_may_be_one_for_all_channels_or_left_out() -> None:
    assert contract(mean=[0.5], std=[0.25]).mean == (0.5,)
    assert contract(mean=[], std=[]).std == ()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "the file cannot be read"),
        ("contract =", "the file is not TOML"),
        ("name = 'x'", r"there is no table \[contract\]"),
        ("contract = 3", r"there is no table \[contract\]"),
    ],
)
def test_a_file_without_a_contract_is_refused_by_path(
    tmp_path: Path, text: str | None, named: str
) -> None:
    path = tmp_path / "contract.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        read_contract(path)
    assert caught.value.where == str(path)


# How files are read under it

RUNS = Reading(audio=AudioReading(16_000, 64, 1.0))


@pytest.mark.parametrize(("size", "expected"), [(0, 4), (9, 9)])
def test_images_are_resized_to_the_runs_size_or_to_the_contracts(size: int, expected: int) -> None:
    classes = ("healthy", "pneumonia", "other")
    read = contract().reading(Reading(image_size=size))
    assert read == Reading(image_size=expected, classes=classes)


def test_recordings_are_read_into_the_contracts_shape_whatever_the_run_says() -> None:
    # 151 frames lie 150 hops of 80 samples apart: 1.5 s of 8000 Hz.
    assert contract(**SOUND).reading(RUNS).audio == AudioReading(8000, 40, 1.5)
    assert contract().reading(RUNS).audio == RUNS.audio


def test_texts_are_read_into_the_contracts_length_with_the_sites_vocabulary() -> None:
    base = Reading(text=TextReading(64, "/words.txt", 100, 5))
    assert contract(**WORDS).reading(base).text == TextReading(4, "/words.txt", 100, 5)
    assert contract().reading(base).text == base.text


# As a data set of a coordinator without data


def test_a_contract_comes_back_from_its_spec() -> None:
    odd = contract(name='say "x"', classes=["größer", "a=b", "c,d"])
    assert odd.to_spec().startswith(CONTRACT)
    assert Contract.from_spec(odd.to_spec()) == odd


@pytest.mark.parametrize(
    ("spec", "where", "named"),
    [
        ("contract:", "dataset, contract", "not JSON"),
        ("contract:{", "dataset, contract", "not JSON"),
        ("contract:[1]", "dataset, contract", "not a JSON object"),
        ('contract:{"name": "x"}', "dataset, contract, type", "Field required"),
        (f"contract:{json.dumps(VALUES | {'shape': [0]})}", "dataset, contract, shape.0", "got 0"),
    ],
)
def test_a_spec_that_is_no_contract_is_refused(spec: str, where: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        load_dataset(spec)
    assert caught.value.where == where


@pytest.mark.parametrize("kind", ["uint8", "float32", "int64"])
def test_its_data_set_has_shape_and_classes_and_no_example(kind: str) -> None:
    one = load_dataset(contract(type=kind).to_spec(), "/nowhere", max_train=10, max_test=10)
    assert (len(one.train), len(one.test)) == (0, 0)
    assert one.train.inputs.dtype == np.dtype(kind)
    assert (one.input_shape, one.num_classes) == ((3, 4, 4), 3)
    assert (one.name, one.mean, one.std) == ("chest x-rays", (0.5, 0.25, 0.125), (1.0, 2.0, 4.0))


def test_its_data_set_has_the_number_of_tokens_and_the_vocabulary() -> None:
    one = load_dataset(contract(**WORDS).to_spec())
    assert (one.num_tokens, one.vocabulary) == (9, WORDS["vocabulary"])


# Kept and not kept


def words(num_tokens: int, vocabulary: str) -> DataSet:
    examples = Examples(np.ones((6, 4), np.int64), np.arange(6) % 3)
    classes = VALUES["classes"]
    return DataSet("words", examples, examples, classes, (), (), num_tokens, vocabulary)


def test_texts_of_the_same_vocabulary_keep_the_contract() -> None:
    kept = contract(**WORDS).kept_by(words(9, WORDS["vocabulary"]))
    assert (kept.name, kept.num_tokens) == ("chest x-rays", 9)
    left_open = contract(**{**WORDS, "num-tokens": 0, "vocabulary": ""})
    assert left_open.kept_by(words(5, "")).num_tokens == 5


@pytest.mark.parametrize(
    ("num_tokens", "vocabulary", "named"),
    [
        (8, WORDS["vocabulary"], "the vocabulary has the wrong size"),
        (9, "f" * 64, "tokens would stand for other words"),
        (9, "", "tokens would stand for other words"),
    ],
)
def test_texts_of_another_vocabulary_do_not_keep_it(
    num_tokens: int, vocabulary: str, named: str
) -> None:
    with pytest.raises(DataError, match=named):
        contract(**WORDS).kept_by(words(num_tokens, vocabulary))


def test_data_that_keep_the_contract_come_under_its_name_and_statistics() -> None:
    own = dataset()
    kept = contract().kept_by(own, 6)
    assert (kept.train, kept.test) == (own.train, own.test)
    assert (kept.name, kept.mean, kept.std) == ("chest x-rays", (0.5, 0.25, 0.125), (1.0, 2.0, 4.0))
    assert tuple(kept.class_names) == ("healthy", "pneumonia", "other")


@pytest.mark.parametrize(
    ("own", "min_examples", "message"),
    [
        (
            dataset(kind="float32"),
            0,
            "the inputs have the wrong type (got 'float32', expected uint8)",
        ),
        (
            dataset(shape=(1, 4, 4)),
            0,
            "the examples have the wrong shape (got [1, 4, 4], expected [3, 4, 4])",
        ),
        (
            dataset(classes=("healthy", "Pneumonia", "other")),
            0,
            "the data set has a class that is not in the contract (got 'Pneumonia', "
            "expected one of: healthy, pneumonia, other)",
        ),
        (
            dataset(classes=("healthy", "pneumonia", "other", "tumor")),
            0,
            "the data set has a class that is not in the contract (got 'tumor', "
            "expected one of: healthy, pneumonia, other)",
        ),
        (
            dataset(),
            7,
            "there are fewer training examples than the site has promised "
            "(got 6, expected 7 or more)",
        ),
    ],
    ids=["type", "shape", "another", "more", "promise"],
)
def test_data_that_do_not_keep_the_contract_are_refused_with_the_point(
    own: DataSet, min_examples: int, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        contract().kept_by(own, min_examples)
    assert str(caught.value) == f"data contract 'chest x-rays': {message}"


def test_of_several_points_the_first_is_named() -> None:
    with pytest.raises(DataError, match="the wrong type"):
        contract().kept_by(dataset("float32", (1, 2, 2), ("a", "b")), 99)


# Its classes decide the labels


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (("healthy", "other", "pneumonia"), [0, 2, 1, 0, 2, 1]),
        (("other", "healthy"), [2, 0, 2, 0, 2, 0]),
    ],
)
def test_the_names_of_the_classes_decide_the_labels(
    classes: tuple[str, ...], labels: list[int]
) -> None:
    kept = contract().kept_by(dataset(classes=classes))
    assert kept.train.labels.tolist() == labels
    assert kept.test.labels.tolist() == labels
    assert tuple(kept.class_names) == ("healthy", "pneumonia", "other")
