"""Who owns each file of class folders: the folder below the class, or a column of a table."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies.common.errors import DataError

FOLDER = "folder"
"""Value of ``group-column``: the folder below that of the class names the owner."""

TABLE = "metadata.csv"
"""Table beside ``train/``, as the Hugging Face Hub has it: ``file_name`` and further columns."""

FILE_NAME = "file_name"


def owners_of(
    root: Path, files: Sequence[tuple[Path, int]], column: str
) -> NDArray[np.generic] | None:
    """Return the owner of each file; None if ``column`` is empty.

    Parameters
    ----------
    root
        The folder that contains ``train/``.
    files
        Files below ``root/SPLIT/CLASS``, with their labels.
    column
        ``folder``, or a column of ``metadata.csv``.

    Raises
    ------
    DataError
        If a file has no owner, or the table cannot be read. The error names the file.
    """
    if not column:
        return None
    if column == FOLDER:
        return np.array([_folder_of(root, file) for file, _ in files], dtype=str)
    owners = _read(root / TABLE, column)
    return np.array([_owner_in(owners, root, file) for file, _ in files], dtype=str)


def _folder_of(root: Path, file: Path) -> str:
    _, _, *below = file.relative_to(root).parts
    if len(below) < 2:
        raise DataError(
            "the file is in no folder of an owner",
            where=str(file),
            expected="train/CLASS/OWNER/FILE, since group-column is 'folder'",
        )
    return str(below[0])


def _owner_in(owners: dict[str, str], root: Path, file: Path) -> str:
    name = file.relative_to(root).as_posix()
    if not owners.get(name):
        raise DataError(
            "the table does not say whose file it is",
            where=f"{root / TABLE}, {name}",
            expected="a row for each file, and in none an empty owner",
        )
    return owners[name]


def _read(table: Path, column: str) -> dict[str, str]:
    """Return the value of a column for each file."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines, strict=True)
            names = list(rows.fieldnames or [])
            owners = {row.get(FILE_NAME, ""): row.get(column) or "" for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"the table of owners cannot be read: {error}",
            where=str(table),
            hint=f"group-column = {FOLDER!r} takes the folder below the class instead",
        ) from None
    for name in (FILE_NAME, column):
        if name not in names:
            raise DataError(
                "the column is missing", where=str(table), got=names, expected=repr(name)
            )
    return owners
