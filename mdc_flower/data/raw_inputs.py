"""New inputs of a trained model, without labels: from files, or as arrays or texts."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdc_flower.data.input_form import InputForm
from mdc_flower.data.readers.files import DECODERS, files_below, suffixes_of
from mdc_flower.data.readers.options import Columns, Reading
from mdc_flower.data.readers.tables import SUFFIXES, read_table
from strategies.common.errors import DataError

Inputs = NDArray[np.generic]

AT_ONCE = 256
"""Number of files that are decoded at once, so that they need not all fit into memory."""


@dataclass(frozen=True)
class RawInputs:
    """Inputs to predict.

    Attributes
    ----------
    names : sequence of str
        The file of each input, or the number of its row.
    batches : iterator of ndarray
        The inputs in this order, in arrays of several.
    left_out : Mapping[str, int]
        How many files were not read, by suffix.
    """

    names: Sequence[str]
    batches: Iterator[Inputs]
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_inputs(source: object, form: InputForm, column: str = "text") -> RawInputs:
    """Return the inputs in a source.

    Parameters
    ----------
    source
        For images and recordings, a file, or a folder with files at any depth. For texts, a table
        (``.csv``, ``.tsv``, ``.parquet``), a file ``.txt`` with one text per line, or a list of
        texts. For any model, arrays ``(N, ...)`` as in its data set, also in a file ``.npy``, and
        for models of vectors a CSV file with as many columns of numbers.
    form
        The form of the model's inputs.
    column
        The column of texts in a table.

    Raises
    ------
    DataError
        If there is nothing to read, or if the inputs are not of this form.
    """
    if isinstance(source, str | Path):
        return _in_file(Path(source).expanduser(), form, column)
    if form.kind == "text" and _are_texts(source):
        return _texts(list(source), form)  # type: ignore[call-overload]
    return _rows(np.asarray(source), form, "the array")


def _in_file(path: Path, form: InputForm, column: str) -> RawInputs:
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError("there is no such file or folder", where=str(path))
    if suffix == ".npy":
        try:
            return _rows(np.load(path, allow_pickle=False), form, str(path))
        except (OSError, ValueError) as error:
            raise DataError(f"the file cannot be read: {error}", where=str(path)) from None
    if form.kind in DECODERS:
        return _decoded(path, form)
    if form.kind == "text" and suffix == ".txt":
        lines = path.read_text("utf-8-sig").splitlines()
        return _texts([line for line in lines if line.strip()], form)
    if form.kind == "text" and suffix in SUFFIXES:
        table = read_table(path, Columns(inputs=column, labels=""))
        return _texts(list(table.inputs), form)
    if len(form.shape) == 1 and suffix == ".csv":
        return _rows(_numbers(path, form.shape[0]), form, str(path))
    takes = {
        "text": "a table with a column of texts, or .txt with one text per line",
        "array": "a file .npy with an array"
        + (", or .csv with columns of numbers" if len(form.shape) == 1 else ""),
    }
    raise DataError(
        "the model does not take such files",
        where=str(path),
        expected=takes[form.kind],
        hint="Its data set is not read from files, so only the code that made it can read them"
        if form.kind == "array"
        else "",
    )


def _decoded(path: Path, form: InputForm) -> RawInputs:
    """Return the files below a folder, or one file, decoded when they are asked for."""
    decode, reading, suffixes = DECODERS[form.kind], form.reading(Reading()), suffixes_of(form.kind)
    found = files_below(path) if path.is_dir() else [path]
    files = [file for file in found if file.suffix.lower() in suffixes]
    if not files:
        raise DataError(
            "there is no file that can be read",
            where=str(path),
            got=sorted({file.suffix for file in found}),
            expected="one of: " + ", ".join(sorted(suffixes)),
        )
    left_out = Counter(file.suffix for file in found if file.suffix.lower() not in suffixes)
    names = [str(file.relative_to(path)) if path.is_dir() else str(file) for file in files]
    batches = (
        checked(decode(files[start : start + AT_ONCE], reading), form, names[start])
        for start in range(0, len(files), AT_ONCE)
    )
    return RawInputs(names, batches, left_out)


def _are_texts(source: object) -> bool:
    return isinstance(source, Sequence) and all(isinstance(text, str) for text in source)


def _texts(texts: list[str], form: InputForm) -> RawInputs:
    if form.vocabulary is None:
        raise DataError(
            "the file of the model does not have its vocabulary, so texts cannot be read",
            where="inputs",
            expected="an array of token numbers",
            hint="A run writes it if the coordinator has the vocabulary file",
        )
    return _rows(form.vocabulary.encode(texts, form.shape[0]), form, "the texts")


def _rows(array: Inputs, form: InputForm, where: str) -> RawInputs:
    inputs = checked(array, form, where)
    return RawInputs([str(row) for row in range(1, len(inputs) + 1)], iter([inputs]))


def checked(array: Inputs, form: InputForm, where: str) -> Inputs:
    """Return an array of inputs in the type that the model was trained with.

    Raises
    ------
    DataError
        If shape or type differ, or values are not possible.
    """
    if array.ndim == 0 or array.shape[1:] != form.shape or not len(array):
        raise DataError(
            "the inputs have another shape than those of the run",
            where=where,
            got=list(array.shape),
            expected=f"[number of inputs, {', '.join(map(str, form.shape))}]",
        )
    if form.dtype == "uint8":
        if array.dtype != np.uint8:
            raise DataError(
                "the inputs have another type than those of the run",
                where=where,
                got=str(array.dtype),
                expected="uint8, with values from 0 to 255",
            )
        return array
    if form.num_tokens or form.dtype == "int64":
        if not np.issubdtype(array.dtype, np.integer):
            raise DataError(
                "the inputs are not tokens", where=where, got=str(array.dtype), expected="int64"
            )
        low, high = int(array.min()), int(array.max())
        if low < 0 or (form.num_tokens and high >= form.num_tokens):
            raise DataError(
                "a token is out of range",
                where=where,
                got=low if low < 0 else high,
                expected=f"0 to {form.num_tokens - 1}",
            )
        return array.astype(np.int64)
    try:
        numbers = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"the inputs are not numbers: {error}", where=where) from None
    if not np.isfinite(numbers).all():
        row = int(np.argwhere(~np.isfinite(numbers))[0][0]) + 1
        raise DataError("a value is not finite", where=f"{where}, row {row}")
    return numbers


def _numbers(file: Path, columns: int) -> Inputs:
    """Return the numbers of a CSV file whose first line has the names of the columns."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        names, *rows = [row for row in csv.reader(lines) if row] or [[]]
    if len(names) != columns:
        raise DataError(
            "the table has another number of columns than the inputs of the model",
            where=str(file),
            got=f"{len(names)}: {', '.join(names)}",
            expected=f"{columns}, in the order of the run's data",
        )
    for number, row in enumerate(rows, 1):
        for name, value in zip(names, row, strict=False):
            try:
                float(value)
            except ValueError:
                raise DataError(
                    "the value is not a number", where=f"{file}, row {number}, {name}", got=value
                ) from None
        if len(row) != columns:
            raise DataError(
                "the number of values differs from that of the first line",
                where=f"{file}, row {number}",
                got=len(row),
                expected=str(columns),
            )
    return np.array(rows, dtype=np.float32).reshape(-1, columns)
