"""The form and the contents of data sets, by their digests; and remarks on data sets."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mdc_flower.data import DataSet, Examples
from mdc_flower.data.identity import content_sha256, differences, form_of
from mdc_flower.data.remarks import remarks
from strategies.common.errors import DataError
from strategies.exchange.messages import LONGEST_TEXT


def rows(count: int = 6, **changes: Any) -> DataSet:
    chance = np.random.default_rng(count)
    inputs = chance.normal(size=(count, 3)).astype(np.float32)
    examples = Examples(inputs, np.arange(count) % 2)
    data = DataSet("rows", examples, examples, ["cat", "dog"], (0.0,), (1.0,))
    return replace(data, **changes)


def test_two_data_sets_of_one_form_agree_whatever_their_examples() -> None:
    assert differences(form_of(rows(6)), form_of(rows(8))) == []
    assert differences("", form_of(rows())) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_names": ["ape", "cat"]}, "classes"),
        ({"class_names": ["dog", "cat"]}, "classes"),
        ({"mean": (0.5,)}, "statistics"),
        ({"train": Examples(np.zeros((2, 4), np.float32), np.arange(2))}, "shape"),
        ({"train": Examples(np.zeros((2, 3), np.uint8), np.arange(2))}, "type"),
    ],
)
def test_a_difference_is_named(changes: dict[str, Any], named: str) -> None:
    assert differences(form_of(rows(**changes)), form_of(rows())) == [named]


def test_a_vocabulary_counts_where_both_know_it() -> None:
    tokens = Examples(np.zeros((2, 3), np.int64), np.arange(2))
    one, other = (
        form_of(rows(train=tokens, num_tokens=9, vocabulary=digit * 64)) for digit in "ab"
    )
    assert differences(one, other) == ["vocabulary"]
    assert differences(one, form_of(rows(train=tokens))) == []
    assert len(one) <= LONGEST_TEXT


def test_the_digest_covers_contents() -> None:
    data = rows()
    labels = replace(data.train, labels=1 - data.train.labels)
    inputs = data.train.inputs.copy()
    inputs[5, 2] += 1
    others = [
        replace(data, train=labels),
        replace(data, train=replace(data.train, inputs=inputs)),
        replace(data, train=replace(data.train, groups=np.arange(6))),
        replace(data, test=data.test.take(np.arange(5))),
        replace(data, class_names=["dog", "cat"]),
    ]
    assert len({content_sha256(one) for one in (data, *others)}) == 6
    assert content_sha256(rows()) == content_sha256(data)


# Values that cannot be


def test_an_empty_cell_is_named_by_split_row_and_column() -> None:
    data = rows()
    data.test.inputs[3, 1] = np.nan
    with pytest.raises(DataError, match="a value is not finite") as caught:
        replace(data, train=rows(4).train).checked()
    assert caught.value.where == "data set 'rows', test, row 4, column 2"


def test_a_standard_deviation_of_0_is_named_by_its_channel() -> None:
    with pytest.raises(DataError, match="not positive") as caught:
        rows(mean=(0.0,) * 3, std=(1.0, 0.0, 1.0)).checked()
    assert caught.value.where == "data set 'rows', std, channel 2 of 3"


# Remarks


def test_good_data_are_without_remark() -> None:
    assert remarks(rows()) == []


def test_rare_classes_are_named() -> None:
    data = rows(3, class_names=["cat", "dog", "ape"])
    assert remarks(data) == ["ape: no training example", "dog: only one training example"]


def test_constant_columns_are_named() -> None:
    data = rows()
    data.train.inputs[:, 1] = 7
    assert remarks(data) == ["1 columns have the same value in all training rows: 2"]


def test_images_up_to_255_with_the_statistics_of_images_up_to_1_are_noticed() -> None:
    pixels = np.linspace(0, 255, 6 * 3 * 4 * 4, dtype=np.float32).reshape(6, 3, 4, 4)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = rows(train=Examples(pixels, np.arange(6) % 2), mean=mean, std=std)
    (remark,) = remarks(data)
    assert "from 0 to 255" in remark
    assert "mean is 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225" in remark
    assert remarks(replace(data, train=Examples(pixels / 255, np.arange(6) % 2))) == []
