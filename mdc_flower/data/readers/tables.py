"""Labelled texts in files: CSV, TSV, Parquet, or lines of ``label text``."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdc_flower.data.readers.options import Columns
from strategies.common.errors import DataError


@dataclass(frozen=True)
class Table:
    """Columns of text; ``labels`` and ``groups`` are empty if there are none."""

    inputs: Sequence[str]
    labels: Sequence[str] = ()
    groups: Sequence[str] = ()


def read_table(file: Path, columns: Columns) -> Table:
    """Return the columns of a file; the suffix gives the format.

    ``.csv`` (comma-separated, quoted with double quotes) and ``.tsv`` (tab-separated, never
    quoted) start with a line of column names. Each line of ``.txt`` is a label, a space, and the
    text. All three are UTF-8. ``.parquet`` may contain labels and groups of any type.

    Raises
    ------
    DataError
        If the file cannot be read, a column is missing, or a row lacks a value. The error names
        the row, counted from 1.
    """
    try:
        found = SUFFIXES[file.suffix.lower()](file, columns)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's and bad UTF-8 are ValueErrors
        raise DataError(f"the file cannot be read: {error}", where=str(file)) from None
    if not found.inputs:
        raise DataError("there are no texts", where=str(file))
    return found


def _read_csv(file: Path, columns: Columns) -> Table:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        return _delimited(file, csv.reader(lines, strict=True), columns)


def _read_tsv(file: Path, columns: Columns) -> Table:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        plain = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return _delimited(file, plain, columns)


def _delimited(file: Path, rows: Iterator[list[str]], columns: Columns) -> Table:
    names = next(rows, [])
    at = [names.index(_checked(file, name, names)) for name in _named(columns)]
    values: list[list[str]] = []
    for number, row in enumerate(filter(None, rows), 1):
        if len(row) != len(names):
            raise DataError(
                "the number of values differs from that of the first line",
                where=f"{file}, row {number}",
                got=len(row),
                expected=str(len(names)),
            )
        values.append([row[index] for index in at])
    return _table(file, list(zip(*values, strict=True)))


def _read_parquet(file: Path, columns: Columns) -> Table:
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(file).names
    wanted = [_checked(file, name, names) for name in _named(columns)]
    table = pyarrow.parquet.read_table(file, columns=wanted)
    found = [table.column(name).to_pylist() for name in wanted]
    if bad := next((text for text in found[0] if not isinstance(text, str | None)), None):
        raise DataError(
            "the column does not contain texts",
            where=f"{file}, {columns.inputs}",
            got=type(bad).__name__,
            expected="str",
        )
    if columns.labels and any(isinstance(value, list | dict) for value in found[1]):
        raise DataError(
            "the labels are lists: several labels per example need a multi-label job",
            where=f"{file}, {columns.labels}",
            expected="one label per example",
        )
    return _table(file, [["" if v is None else str(v) for v in column] for column in found])


def _read_lines(file: Path, columns: Columns) -> Table:
    if columns.groups:
        raise DataError("a .txt file has no groups", where=str(file), got=columns.groups)
    with file.open(encoding="utf-8-sig") as lines:
        pairs = [line.rstrip("\r\n").partition(" ") for line in lines if line.strip()]
    return _table(file, [[text for _, _, text in pairs], [label for label, _, _ in pairs]])


SUFFIXES: dict[str, Callable[[Path, Columns], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
}
"""Functions that read a file, by suffix."""


def _named(columns: Columns) -> list[str]:
    return [name for name in (columns.inputs, columns.labels, columns.groups) if name]


def _checked(file: Path, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise DataError(
            "the column is missing",
            where=str(file),
            got=list(names),
            expected=repr(name),
            hint="Set the columns with input-column, label-column and group-column",
        )
    return name


def _table(file: Path, columns: Sequence[Sequence[str]]) -> Table:
    """Return the table of these columns; texts may be empty, labels and groups must not be."""
    for what, column in zip(("label", "group"), columns[1:], strict=False):
        for number, value in enumerate(column, 1):
            if not value:
                raise DataError(f"the row has no {what}", where=f"{file}, row {number}")
    return Table(*columns) if columns else Table([], [])
