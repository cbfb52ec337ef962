"""Files in ``train/`` and ``test/``, each with one folder per class, and their fingerprint."""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies.common.errors import DataError

Files = Sequence[tuple[Path, int]]
"""Each file with its label."""


@dataclass(frozen=True)
class ClassFolders:
    """The files of the splits, sorted by name, and the names of the classes."""

    class_names: Sequence[str]
    train: Files
    test: Files
    validation: Files = ()

    @property
    def splits(self) -> dict[str, Files]:
        """Return the files by split; without those of validation if there are none."""
        own = {"validation": self.validation} if self.validation else {}
        return {"train": self.train, "test": self.test, **own}


def class_folders(
    path: str, kind: str, things: str, suffixes: Collection[str], agreed: Sequence[str] = ()
) -> ClassFolders:
    """Return the files below a folder.

    Parameters
    ----------
    path
        Absolute path. Classes are the sorted folder names of ``train/``, unless they are agreed.
    kind, things
        Name of such a folder (``image-folder``), and of its content (``images``), for errors.
    suffixes
        Suffixes of the files, in lower case; other files are ignored.
    agreed
        The agreed classes; see `Reading.classes`.

    Raises
    ------
    DataError
        If a folder is missing or contains no such file, or if ``test/`` has another class.
    """
    root = absolute(path, kind)
    if agreed:
        return _agreed_folders(root, list(agreed), things, suffixes)
    classes = _classes(root / "train")
    own = ["validation"] if (root / "validation").is_dir() else []
    for split in ("test", *own):
        split_classes = _classes(root / split) if split == "test" else _folders_in(root / split)
        if not set(split_classes) <= set(classes):
            raise DataError(
                f"the {split} folder has a class that the training folder does not have",
                where=str(root),
                got=sorted(set(split_classes) - set(classes))[0],
                expected="one of: " + ", ".join(classes),
            )
    files = (_files(root / split, classes, things, suffixes) for split in ("train", "test", *own))
    return ClassFolders(classes, *files)


def _agreed_folders(
    root: Path, classes: list[str], things: str, suffixes: Collection[str]
) -> ClassFolders:
    """Return the files of agreed classes; a class may have none, and there may be no test split."""
    splits: list[Files] = []
    for split in ("train", "test", "validation"):
        folder = root / split
        if split != "train" and not folder.is_dir():
            splits.append([])
            continue
        if unknown := sorted(set(_folders_in(folder)) - set(classes)):
            raise DataError(
                "the folder is none of the agreed classes",
                where=str(folder / unknown[0]),
                expected="one of: " + ", ".join(classes),
                hint="Rename it as in the contract, or move it elsewhere",
            )
        splits.append(_found(folder, classes, suffixes))
    if not splits[0]:
        raise DataError(
            f"there are no {things}",
            where=str(root / "train"),
            expected="folders named as the agreed classes: " + ", ".join(classes),
        )
    return ClassFolders(classes, *splits)


def absolute(path: str, kind: str) -> Path:
    """Return the path if it is absolute.

    Raises
    ------
    DataError
        If it is relative: the processes of a run do not share a working directory.
    """
    if not Path(path).is_absolute():
        raise DataError(
            "the path is not absolute",
            where=kind,
            got=path,
            hint="Use an absolute path, or set data-root: data set paths may be relative to it",
        )
    return Path(path)


def labels_of(files: Files) -> NDArray[np.int64]:
    """Return the labels of the files."""
    return np.array([label for _, label in files], dtype=np.int64)


def fingerprint(files: Files, *settings: object) -> str:
    """Return a digest that changes if the settings, or any file, change."""
    digest = hashlib.sha256(repr(settings).encode())
    for file, label in files:
        status = file.stat()
        digest.update(f"{file}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _folders_in(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, which must be there."""
    if not folder.is_dir():
        raise DataError(
            "the folder is missing",
            where=str(folder),
            expected="train/ and test/ in the data folder, each with one folder per class",
        )
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _classes(folder: Path) -> list[str]:
    classes = _folders_in(folder)
    if len(classes) < 2:
        raise DataError(
            "there are fewer than two class folders", where=str(folder), got=len(classes)
        )
    return classes


def _found(folder: Path, classes: Sequence[str], suffixes: Collection[str]) -> Files:
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).glob("**/*"))
        if file.suffix.lower() in suffixes
    ]
    for file, _ in files:
        _check_name(file)
    return files


def _files(folder: Path, classes: Sequence[str], things: str, suffixes: Collection[str]) -> Files:
    files = _found(folder, classes, suffixes)
    if not files:
        raise DataError(f"there are no {things}", where=str(folder))
    seen = {label for _, label in files}
    if folder.name == "train" and len(seen) < len(classes):
        bare = next(name for label, name in enumerate(classes) if label not in seen)
        raise DataError(f"the class has no {things} to train on", where=str(folder / bare))
    return files


def _check_name(path: Path) -> None:
    """Refuse a name that is not UTF-8: the text files of a run cannot contain it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(
            "the name is not UTF-8",
            where=os.fsencode(path).decode("utf-8", "backslashreplace"),
            hint="Rename it; convmv renames many at once",
        ) from None
