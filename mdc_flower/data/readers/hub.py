"""``hf:NAME``: a data set of the Hugging Face Hub, or ``hf:/abs/path``, a copy on disk.

The type of the input column says whether they are images, texts or recordings. The library
``datasets`` downloads them into its own cache (``HF_HOME``); the converted arrays are cached here.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdc_flower.data.cache import cached_arrays
from mdc_flower.data.dataset import DataSet
from mdc_flower.data.readers.audio import LOG_MEL_MEAN, LOG_MEL_STD, log_mel
from mdc_flower.data.readers.image_folder import IMAGENET_MEAN, IMAGENET_STD, stack_images
from mdc_flower.data.readers.images import DECODER_VERSION, decode_image
from mdc_flower.data.readers.options import HubReading, Reading
from mdc_flower.data.readers.tables import Table
from mdc_flower.data.readers.text import data_set, encode_labels, encode_texts, read_vocabulary
from strategies.common.errors import DataError

HUB_VERSION = 1
"""Increase it with every change of the conversion, to invalidate the cache."""


def load_hub(name: str, reading: Reading) -> DataSet:
    """Load a data set of the Hub.

    Parameters
    ----------
    name
        Name on the Hub, optionally with ``@`` and a revision to pin it; or the absolute path of
        a folder that ``save_to_disk`` has written, or of files that ``load_dataset`` reads.
    reading
        Subset, test split, columns, and how images, texts or recordings are read. Labels with
        names on the Hub keep their order; other labels are sorted as texts.

    Raises
    ------
    ConfigError
        If the input column contains recordings and the extra ``audio`` is missing.
    DataError
        If the data set cannot be loaded, a split or column is missing, the inputs have an
        unsupported type, or labels are missing.
    """
    from datasets.fingerprint import generate_fingerprint

    train, test = _splits(name, reading)
    vocabulary = read_vocabulary(reading.text)
    parts = [generate_fingerprint(train), generate_fingerprint(test), repr(reading)]
    parts += [vocabulary.sha256 if vocabulary else "", str(HUB_VERSION), str(DECODER_VERSION)]
    where = f"hf:{name}"
    kind = _kind(where, train, reading.columns.inputs)
    arrays = cached_arrays(
        f"hub-{_digest(parts)}", lambda: _arrays(where, kind, train, test, reading)
    )
    mean, std = {
        "image": (IMAGENET_MEAN, IMAGENET_STD),
        "audio": (LOG_MEL_MEAN, LOG_MEL_STD),
        "text": ((), ()),
    }[kind]
    return data_set("hf" if Path(name).is_absolute() else name, arrays, mean, std)


def hub_train_texts(name: str, reading: Reading) -> Sequence[str]:
    """Return the training texts of a data set of the Hub, with or without labels.

    Raises
    ------
    DataError
        If the data set cannot be loaded, its training split or the input column is missing, or
        that column does not contain texts.
    """
    where, column = f"hf:{name}", reading.columns.inputs
    train = _split(where, _download(name, reading.hub), "train", [column])
    if (kind := _kind(where, train, column)) != "text":
        raise DataError(
            "the inputs are not texts", where=f"{where}, {column}", got=kind, expected="text"
        )
    return _texts(where, train, column)


def _splits(name: str, reading: Reading) -> tuple[Any, Any]:
    """Return training and test split, after a check that they have the columns."""
    where = f"hf:{name}"
    found = _download(name, reading.hub)
    columns = reading.columns
    names = [columns.inputs, columns.labels, *([columns.groups] if columns.groups else [])]
    train = _split(where, found, "train", names)
    if reading.classes and reading.hub.test_split not in found:
        return train, train.select([])
    return train, _split(where, found, reading.hub.test_split, names)


def _split(where: str, found: Any, split: str, columns: Sequence[str]) -> Any:
    if split not in found:
        raise DataError(
            "there is no such split",
            where=where,
            got=split,
            expected="one of: " + ", ".join(found),
            hint="hf-test-split sets the test split",
        )
    for column in columns:
        if column not in found[split].features:
            raise DataError(
                "the column is missing",
                where=where,
                got=list(found[split].features),
                expected=repr(column),
                hint="Set the columns with input-column, label-column and group-column",
            )
    return found[split]


def _download(name: str, hub: HubReading) -> Any:
    import datasets

    path, revision = name, None
    if not Path(name).is_absolute():
        path, _, revision = name.partition("@")
    try:
        if Path(path, "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, hub.subset or None, revision=revision or None)
    except Exception as error:  # from the network, the Hub, or a format's reader
        raise DataError(
            f"the data set cannot be loaded: {type(error).__name__}: {error}",
            where=f"hf:{name}",
            hint="The first use needs internet access. Offline, use a copy on disk: hf:/abs/path",
        ) from None


def _kind(where: str, split: Any, column: str) -> str:
    import datasets

    feature = split.features[column]
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.Audio):
        return "audio"
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        return "text"
    raise DataError(
        "the inputs have an unsupported type",
        where=f"{where}, {column}",
        got=str(feature),
        expected="images, texts or recordings",
        hint="Set their column with input-column, or write a data set as module:function",
    )


def _arrays(
    where: str, kind: str, train: Any, test: Any, reading: Reading
) -> dict[str, NDArray[np.generic]]:
    columns = reading.columns
    names = getattr(train.features[columns.labels], "names", None) or ()
    splits = {"train": train, "test": test}
    labels = {name: _labels(where, split, columns.labels) for name, split in splits.items()}
    arrays = encode_labels(where, labels, names, reading.classes)
    if kind == "text":
        tables = {
            name: Table(_texts(where, split, columns.inputs), ()) for name, split in splits.items()
        }
        arrays |= encode_texts(tables, reading.text, read_vocabulary(reading.text))
    for split, part in splits.items():
        if kind == "image":
            arrays[f"{split}_inputs"] = (
                stack_images(
                    _images(where, split, part, columns.inputs), len(part), reading.image_size
                )
                if len(part)
                else arrays["train_inputs"][:0]
            )
        elif kind == "audio":
            found = [
                log_mel(source, at, reading.audio)
                for source, at in _recordings(where, split, part, columns.inputs)
            ]
            arrays[f"{split}_inputs"] = np.stack(found) if found else arrays["train_inputs"][:0]
        if columns.groups:
            arrays[f"{split}_groups"] = np.asarray([str(v) for v in part[columns.groups]])
    return arrays


def _labels(where: str, split: Any, column: str) -> list[str]:
    values = list(split[column])
    feature = split.features[column]
    if any(value is None or value == -1 for value in values):
        raise DataError(
            "labels are missing, as in the test splits of competitions",
            where=f"{where}, {column}",
            hint="Set hf-test-split to a split that has labels",
        )
    if any(isinstance(value, list | dict) for value in values):
        raise DataError(
            "the labels are lists: several labels per example need a multi-label job",
            where=f"{where}, {column}",
            expected="one label per example",
        )
    named = hasattr(feature, "int2str")
    return [feature.int2str(value) if named else str(value) for value in values]


def _texts(where: str, split: Any, column: str) -> Sequence[str]:
    texts = list(split[column])
    if None in texts:
        raise DataError(
            "a text is missing", where=f"{where}, {column}, row {texts.index(None) + 1}"
        )
    return texts


def _images(where: str, name: str, split: Any, column: str) -> Iterator[tuple[str, Any]]:
    import datasets

    for source, at in _stored(
        where, name, split.cast_column(column, datasets.Image(decode=False)), column
    ):
        yield at, decode_image(source, at)


def _recordings(where: str, name: str, split: Any, column: str) -> Iterator[tuple[Any, str]]:
    import datasets

    return _stored(where, name, split.cast_column(column, datasets.Audio(decode=False)), column)


def _stored(where: str, name: str, undecoded: Any, column: str) -> Iterator[tuple[Any, str]]:
    """Yield each row's file, or its bytes, and its name for errors."""
    for row, example in enumerate(undecoded, 1):
        stored = example[column]
        source = io.BytesIO(stored["bytes"]) if stored["bytes"] else Path(stored["path"])
        at = f"{where}, {name}, row {row}"
        yield source, f"{at}, {stored['path']}" if stored["path"] else at


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
