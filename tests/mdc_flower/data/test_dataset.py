"""What a data set must keep to, and how it is cut to fewer examples."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mdc_flower.data import DataSet, Examples
from strategies.common.errors import DataError


def images(count: int = 4, shape: tuple[int, ...] = (3, 2, 2), **changes: Any) -> Examples:
    fields: dict[str, Any] = {
        "inputs": np.zeros((count, *shape), np.uint8),
        "labels": np.arange(count, dtype=np.int64) % 2,
    }
    return Examples(**(fields | changes))


def data(train: Examples | None = None, test: Examples | None = None, **changes: Any) -> DataSet:
    fields: dict[str, Any] = {
        "name": "scans",
        "train": images() if train is None else train,
        "test": images(2) if test is None else test,
        "class_names": ["no", "yes"],
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }
    return DataSet(**(fields | changes))


def words(tokens: list[int], **changes: Any) -> DataSet:
    train = images(inputs=np.array(tokens)[:, None])
    return data(train, images(2, inputs=np.zeros((2, 1), np.int64)), mean=(), std=(), **changes)


@pytest.mark.parametrize(
    "kept",
    [
        data(),
        data(mean=(), std=()),
        data(mean=(0.5,), std=(0.2,)),
        data(images(inputs=np.zeros((4, 7), np.float32)), images(shape=(7,)), mean=(), std=()),
        data(images(inputs=np.zeros((4, 7), np.int64)), images(shape=(7,)), mean=(), std=()),
        data(images(groups=np.array(["a", "b", "a", "b"]))),
        words([0, 2, 1, 0], num_tokens=3),
        data(images(1), images(1)),
    ],
)
def test_a_data_set_that_keeps_the_contract_is_returned_as_it_is(kept: DataSet) -> None:
    assert kept.checked() is kept


def test_shape_and_number_of_classes_are_read_off_the_data() -> None:
    assert (data().input_shape, data().num_classes) == ((3, 2, 2), 2)


FLOATS: NDArray[np.float64] = np.zeros((4, 3, 2, 2))
TRAIN, TEST, WHOLE = "data set 'scans', train", "data set 'scans', test", "data set 'scans'"


@pytest.mark.parametrize(
    ("broken", "where", "what", "got"),
    [
        (data(images(inputs=FLOATS)), TRAIN, "the inputs have an unsupported type", "float64"),
        (
            data(images(inputs=FLOATS.astype(np.float16))),
            TRAIN,
            "the inputs have an unsupported type",
            "float16",
        ),
        (data(test=images(inputs=FLOATS)), TEST, "the inputs have an unsupported type", "float64"),
        (data(images(labels=np.zeros(3, np.int64))), TRAIN, "the labels do not match", "int64[3]"),
        (
            data(images(labels=np.zeros((4, 1), np.int64))),
            TRAIN,
            "the labels do not match",
            "int64[4, 1]",
        ),
        (data(images(labels=np.zeros(4, np.int32))), TRAIN, "the labels do not match", "int32[4]"),
        (
            data(test=images(2, labels=np.zeros(3, np.int64))),
            TEST,
            "the labels do not match",
            "int64[3]",
        ),
        (data(images(0)), TRAIN, "there are no examples", None),
        (words([0, 2, 1, 3], num_tokens=3), TRAIN, "a token is out of range", 3),
        (words([0, 2, -1, 3], num_tokens=4), TRAIN, "a token is out of range", -1),
        (data(num_tokens=3), TRAIN, "only int64 inputs can be tokens", "uint8"),
        (data(test=images(0)), TEST, "there are no examples", None),
        (data(images(labels=np.array([0, 1, 2, 0]))), TRAIN, "a label has no class name", 2),
        (data(images(labels=np.array([0, -1, 1, 0]))), TRAIN, "a label has no class name", -1),
        (data(test=images(2, labels=np.array([0, 7]))), TEST, "a label has no class name", 7),
        (data(class_names=[]), TRAIN, "a label has no class name", 1),
        (data(images(groups=np.array(["a"] * 3))), TRAIN, "the groups do not match the labels", 3),
        (
            data(test=images(shape=(3, 2, 5))),
            WHOLE,
            "test inputs and training inputs differ in shape",
            (3, 2, 5),
        ),
        (data(mean=(0.5, 0.5)), WHOLE, "one value per channel", ((0.5, 0.5), (0.25,) * 3)),
        (
            data(mean=(0.5,) * 2, std=(0.5,) * 2),
            WHOLE,
            "one value per channel",
            ((0.5,) * 2, (0.5,) * 2),
        ),
        (data(std=()), WHOLE, "one value per channel", ((0.5,) * 3, ())),
    ],
)
def test_what_breaks_the_contract_is_named(
    broken: DataSet, where: str, what: str, got: object
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        broken.checked()
    assert (caught.value.where, caught.value.got) == (where, got)


def test_what_was_expected_is_said() -> None:
    with pytest.raises(DataError) as caught:
        data(images(labels=np.array([0, 1, 2, 0]))).checked()
    assert caught.value.expected == "0 to 1"
    with pytest.raises(DataError) as caught:
        data(test=images(shape=(3, 2, 5))).checked()
    assert caught.value.expected == "(3, 2, 2)"


def test_taking_rows_takes_all_that_belongs_to_them_in_their_order() -> None:
    examples = Examples(
        np.arange(5, dtype=np.float32)[:, None], np.arange(5), np.array(list("abcde"))
    )
    taken = examples.take(np.array([3, 0, 3]))
    assert taken.inputs.tolist() == [[3.0], [0.0], [3.0]]
    assert taken.labels.tolist() == [3, 0, 3]
    assert taken.groups is not None
    assert taken.groups.tolist() == ["d", "a", "d"]
    assert len(taken) == 3
    assert replace(examples, groups=None).take(np.array([1])).groups is None


# Fewer examples


def labelled(labels: NDArray[np.int64]) -> Examples:
    rows = np.arange(len(labels))
    return Examples(rows.astype(np.float32)[:, None], labels, rows * 10)


LABELS: dict[str, NDArray[np.int64]] = {
    "sorted": np.repeat([0, 1, 2], [60, 30, 10]),
    "in turn": np.arange(100) % 4,
    "shuffled": np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10])),
    "one class": np.zeros(100, np.int64),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("maximum", [1, 7, 10, 33, 50, 99])
def test_a_limit_keeps_the_shares_of_the_classes(labels: NDArray[np.int64], maximum: int) -> None:
    one = data(labelled(labels), labelled(labels), class_names=list("abcd"), mean=(), std=())
    train = one.limited(maximum, 0).train
    assert len(train) == maximum
    counts = np.bincount(train.labels, minlength=4)
    shares = np.bincount(labels, minlength=4) * maximum / 100
    assert np.abs(counts - shares).max() < 1
    # The rows are rows of the data set, each once and in order, with what belongs to them.
    rows = train.inputs[:, 0].astype(int)
    assert (np.diff(rows) > 0).all()
    assert train.labels.tolist() == labels[rows].tolist()
    assert train.groups is not None
    assert train.groups.tolist() == (rows * 10).tolist()


def test_a_limit_is_the_same_every_time() -> None:
    one = data(labelled(LABELS["shuffled"]), class_names=list("abc"), mean=(), std=())
    assert np.array_equal(one.limited(20, 0).train.inputs, one.limited(20, 0).train.inputs)


@pytest.mark.parametrize("limit", [0, 4, 5])
def test_no_limit_or_one_that_is_not_reached_keeps_everything(limit: int) -> None:
    one = data()
    assert one.limited(limit, limit).train is one.train
    assert one.limited(limit, limit).test is one.test


@pytest.mark.parametrize(
    ("limits", "sizes"), [((3, 0), (3, 2)), ((0, 1), (4, 1)), ((2, 1), (2, 1)), ((1, 5), (1, 2))]
)
def test_train_and_test_have_limits_of_their_own(
    limits: tuple[int, int], sizes: tuple[int, int]
) -> None:
    cut = data().limited(*limits)
    assert (len(cut.train), len(cut.test)) == sizes
    assert (cut.name, cut.class_names, cut.mean) == ("scans", ["no", "yes"], (0.5,) * 3)


def test_an_examples_length_is_its_number_of_labels() -> None:
    count: Callable[[Examples], int] = len
    assert count(images(7)) == 7
