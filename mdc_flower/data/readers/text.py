"""``text-folder:/abs/path``: labelled texts in ``train.*`` and ``test.*``, as token numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdc_flower.data.cache import cached_arrays
from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.readers.class_folders import absolute, fingerprint
from mdc_flower.data.readers.options import Columns, TextReading
from mdc_flower.data.readers.tables import SUFFIXES, Table, read_table
from mdc_flower.data.readers.vocabulary import Vocabulary
from strategies.common.errors import DataError

TOKENS_VERSION = 1
"""Increase it with every change of the tokens, to invalidate the cache."""


def load_text_folder(
    path: str, reading: TextReading, columns: Columns, agreed: Sequence[str] = ()
) -> DataSet:
    """Load the texts of a folder as token numbers, tokenized once and cached.

    Parameters
    ----------
    path
        Absolute path of a folder with one ``train.*`` and one ``test.*``; see `read_table` for
        the formats. Classes are the sorted labels of ``train``, unless they are agreed.
    reading
        Length, and vocabulary: from a file, or made from all texts of ``train``.
    columns
        Names of the columns.
    agreed
        The agreed classes; see `Reading.classes`.

    Raises
    ------
    DataError
        If a file is missing, a split has two files, or a file or the vocabulary cannot be read.
    """
    root = absolute(path, "text-folder")
    needed = ("train",) if agreed else ("train", "test")
    files = {
        split: _file(root, split)
        for split in ("train", "test", "validation")
        if split in needed or any(root.glob(f"{split}.*"))
    }
    vocabulary = read_vocabulary(reading)
    settings = (reading, columns, agreed, vocabulary.sha256 if vocabulary else "", TOKENS_VERSION)
    arrays = cached_arrays(
        f"text-{fingerprint([(file, 0) for file in files.values()], *settings)}",
        lambda: _arrays(root, files, columns, reading, vocabulary, agreed),
    )
    return data_set("text-folder", arrays)


def train_texts(path: str, column: str) -> Sequence[str]:
    """Return the training texts of a folder, with or without labels.

    Parameters
    ----------
    path
        Absolute path of a folder with one ``train.*``.
    column
        Name of the column of texts.

    Raises
    ------
    DataError
        If there is no such file, there is more than one, or it cannot be read.
    """
    file = _file(absolute(path, "text-folder"), "train")
    return read_table(file, Columns(inputs=column, labels="")).inputs


def read_vocabulary(reading: TextReading) -> Vocabulary | None:
    """Return the vocabulary in the file of ``reading``; None if it names no file.

    Raises
    ------
    DataError
        If it cannot be read, or its path is not absolute.
    """
    if not reading.vocabulary:
        return None
    return Vocabulary.read(absolute(reading.vocabulary, "vocabulary"))


def encode_labels(
    where: str,
    labels: Mapping[str, Sequence[str]],
    classes: Sequence[str] = (),
    agreed: Sequence[str] = (),
) -> dict[str, NDArray[np.generic]]:
    """Return the labels of each split as numbers, and the names of the classes.

    Parameters
    ----------
    where
        Name of the data set for errors.
    labels
        Labels of the examples, by split.
    classes
        The classes in their order; if empty, the sorted labels of ``train``.
    agreed
        The agreed classes, which take precedence; see `Reading.classes`.

    Raises
    ------
    DataError
        If there are fewer than two classes, a label begins or ends with white space, a class occurs
        only in another split, or a label is none of the agreed classes.
    """
    for split, of in labels.items():
        _check_labels(f"{where}, {split}", of)
    found = set().union(*labels.values())
    if agreed and (odd := sorted(found - set(agreed))):
        raise DataError(
            "a label is none of the agreed classes",
            where=where,
            got=odd[0],
            expected="one of: " + ", ".join(agreed),
        )
    names = list(agreed) or list(classes) or sorted(set(labels["train"]))
    if len(names) < 2:
        raise DataError("there are fewer than two classes", where=where, got=len(names))
    if odd := sorted(found - set(names)):
        raise DataError(
            "a test example has a class without training examples",
            where=where,
            got=odd[0],
            expected="one of: " + ", ".join(names),
        )
    numbers = {name: label for label, name in enumerate(names)}
    return {
        "class_names": np.asarray(names),
        **{
            f"{split}_labels": np.array([numbers[label] for label in of], np.int64)
            for split, of in labels.items()
        },
    }


def _check_labels(where: str, labels: Sequence[str]) -> None:
    """Refuse labels that differ from others in white space only."""
    for row, label in enumerate(labels, 1):
        if label != label.strip():
            raise DataError(
                "a label begins or ends with white space",
                where=f"{where}, row {row}",
                got=label,
                hint="Remove it: it would make another class",
            )


def encode_texts(
    tables: Mapping[str, Table], reading: TextReading, vocabulary: Vocabulary | None
) -> dict[str, NDArray[np.generic]]:
    """Return the texts of each split as token numbers, with any groups.

    Without a vocabulary, it is made from the training texts.
    """
    texts = tables["train"].inputs
    known = vocabulary or Vocabulary.of(texts, reading.vocabulary_size, reading.min_count)
    arrays: dict[str, NDArray[np.generic]] = {
        "num_tokens": np.asarray(known.num_tokens),
        "vocabulary": np.asarray(known.sha256),
    }
    for split, table in tables.items():
        arrays[f"{split}_inputs"] = known.encode(table.inputs, reading.length)
        if table.groups:
            arrays[f"{split}_groups"] = np.asarray(table.groups)
    return arrays


def data_set(
    name: str,
    arrays: Mapping[str, NDArray[np.generic]],
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> DataSet:
    """Return the data set of cached arrays, named as in `encode_labels` and `encode_texts`."""
    splits = {
        split: Examples(
            arrays[f"{split}_inputs"],
            np.asarray(arrays[f"{split}_labels"], np.int64),
            arrays.get(f"{split}_groups"),
        )
        for split in ("train", "test", "validation")
        if f"{split}_labels" in arrays
    }
    return DataSet(
        name=name,
        **splits,
        class_names=[str(label) for label in arrays["class_names"]],
        mean=mean,
        std=std,
        num_tokens=int(arrays.get("num_tokens", np.asarray(0))),
        vocabulary=str(arrays.get("vocabulary", "")),
    )


def _arrays(
    root: Path,
    files: Mapping[str, Path],
    columns: Columns,
    reading: TextReading,
    vocabulary: Vocabulary | None,
    agreed: Sequence[str],
) -> dict[str, NDArray[np.generic]]:
    # Under agreed classes there may be no test split.
    tables = {"test": Table([]), **{s: read_table(file, columns) for s, file in files.items()}}
    labels = {split: table.labels for split, table in tables.items()}
    return {
        **encode_labels(str(root), labels, agreed=agreed),
        **encode_texts(tables, reading, vocabulary),
    }


def _file(root: Path, split: str) -> Path:
    found = [path for suffix in SUFFIXES if (path := root / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        raise DataError(
            f"there is more than one file {split}.*" if found else f"there is no file {split}.*",
            where=str(root),
            got=[path.name for path in found] or None,
            expected=f"one of {', '.join(f'{split}{suffix}' for suffix in SUFFIXES)}",
        )
    return found[0]
