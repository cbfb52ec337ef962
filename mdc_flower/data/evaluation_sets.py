"""Test examples for a trained model: a folder of them alone, or the test split of a data set.

The model decides the classes. A test set may lack some of them, or name them in another order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.input_form import InputForm
from mdc_flower.data.readers.files import DECODERS, files_below, suffixes_of
from mdc_flower.data.readers.options import Reading
from mdc_flower.data.readers.tables import SUFFIXES, read_table
from mdc_flower.data.registry import load_dataset
from strategies.common.errors import DataError

FOLDERS = {"image-folder": "image", "audio-folder": "audio"}
"""What is in the files of a folder, by the name of such a data set."""


def load_test_set(
    spec: str, data_root: str, reading: Reading, form: InputForm, classes: Sequence[str]
) -> DataSet:
    """Return test examples with the labels of a model's classes, and no training examples.

    Parameters
    ----------
    spec, data_root, reading
        As in `load_dataset`. An image or audio folder, and a text folder for a model that has its
        vocabulary, may be the test part alone: class folders, or one file of texts.
    form
        The form of the model's inputs.
    classes
        The model's classes.

    Raises
    ------
    DataError
        If there are no examples, or a class that the model does not have.
    """
    kind, _, path = spec.partition(":")
    root = Path(data_root, path)
    if kind in FOLDERS and root.is_dir():
        test = _from_folders(FOLDERS[kind], root, reading, classes)
    elif kind == "text-folder" and form.vocabulary is not None and root.exists():
        test = _from_table(root, reading, form, classes)
    else:
        found = load_dataset(spec, data_root, reading)
        labels = relabelled(found.test.labels, found.class_names, classes, found.name)
        test = Examples(found.test.inputs, labels)
        return DataSet(
            found.name,
            test.take(np.arange(0)),
            test,
            classes,
            num_tokens=found.num_tokens,
            vocabulary=found.vocabulary,
        )
    vocabulary = form.vocabulary.sha256 if form.vocabulary else ""
    none = test.take(np.arange(0))
    return DataSet(kind, none, test, classes, (), (), form.num_tokens, vocabulary)


def relabelled(
    labels: NDArray[np.int64], own: Sequence[str], classes: Sequence[str], name: str
) -> NDArray[np.int64]:
    """Return labels of a data set with classes of its own as labels of a model's classes.

    Raises
    ------
    DataError
        If the model does not have one of the classes.
    """
    if unknown := [one for one in own if one not in classes]:
        raise DataError(
            "the data set's classes differ from the model's",
            where=f"data set {name!r}",
            got=list(own),
            expected=str(list(classes)),
            hint=f"The model has no class {unknown[0]!r}",
        )
    return np.array([list(classes).index(one) for one in own], np.int64)[labels]


def _from_folders(kind: str, root: Path, reading: Reading, classes: Sequence[str]) -> Examples:
    folder = root / "test" if (root / "test").is_dir() else root
    own = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    ]
    relabelled(np.empty(0, np.int64), [entry.name for entry in own], classes, str(folder))
    pairs = [
        (file, list(classes).index(entry.name))
        for entry in own
        for file in files_below(entry)
        if file.suffix.lower() in suffixes_of(kind)
    ]
    if not pairs:
        raise DataError(
            "there are no test examples",
            where=str(folder),
            expected=f"folders with names of classes: {', '.join(classes)}",
        )
    inputs = DECODERS[kind]([file for file, _ in pairs], reading)
    return Examples(inputs, np.array([label for _, label in pairs], np.int64))


def _from_table(root: Path, reading: Reading, form: InputForm, classes: Sequence[str]) -> Examples:
    file = root
    if root.is_dir():
        found = [path for s in SUFFIXES if (path := root / f"test{s}").is_file()]
        if len(found) != 1:
            raise DataError(
                "there must be one file test.*",
                where=str(root),
                got=[path.name for path in found],
                expected="one of " + ", ".join(f"test{suffix}" for suffix in SUFFIXES),
            )
        (file,) = found
    table = read_table(file, reading.columns)
    own = sorted(set(table.labels))
    numbers = np.array([own.index(label) for label in table.labels], np.int64)
    assert form.vocabulary is not None
    inputs = form.vocabulary.encode(table.inputs, form.shape[0])
    return Examples(inputs, relabelled(numbers, own, classes, str(file)))
