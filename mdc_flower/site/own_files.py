"""Sealed files that a site keeps for itself, in a folder that may contain other files too."""

import re
from logging import WARNING
from pathlib import Path

from strategies.common.files import (
    Content,
    DamagedError,
    check_seal,
    remove_temporary,
    seal,
    sealed_files,
)
from strategies.common.log import log
from strategies.storage.model_files import StoredArrays

SUFFIX = ".safetensors"


class OwnFiles:
    """The sealed files in a folder whose names have one form.

    Parameters
    ----------
    folder : Path
        Folder for the files; created if missing, for its owner only.
    name : re.Pattern
        Form of the files' names. No other file is read or deleted.
    """

    def __init__(self, folder: Path, name: re.Pattern[str]) -> None:
        self.folder = folder
        self._name = name
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_temporary(folder)
        except OSError as error:
            log(WARNING, "%s cannot be used: %s", folder, error)

    def paths(self, start: str = "") -> list[Path]:
        """Return the files whose names begin with ``start``, in the order of their names."""
        return [
            path
            for path in sealed_files(self.folder, SUFFIX)
            if self._name.fullmatch(path.name) and path.name.startswith(start)
        ]

    def read(self, stem: str) -> StoredArrays | None:
        """Return the first intact file with a stem, None if there is none; delete damaged ones."""
        for path in self.paths(f"{stem}."):
            try:
                check_seal(path)
                return StoredArrays(path)
            except DamagedError as error:
                log(WARNING, "%s. It is ignored", error)
                self.delete([path])
        return None

    def write(self, stem: str, content: Content) -> Path:
        """Write a file and return its path.

        Raises
        ------
        StorageError
            If that fails.
        """
        return seal(self.folder, stem, SUFFIX, content)

    def delete(self, paths: list[Path]) -> None:
        """Delete files; one that cannot be deleted is logged."""
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log(WARNING, "%s cannot be deleted: %s", path, error)
