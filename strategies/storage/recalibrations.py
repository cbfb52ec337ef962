"""What became of BatchNorm's statistics after the last round: a sealed file for each model.

It comes into being when all of it is known. A run that goes on finds it, and asks nobody again.
"""

from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.averaging import Arrays
from strategies.common.files import (
    DamagedError,
    check_seal,
    finite,
    remove_temporary,
    seal,
    sealed_files,
    writing,
)
from strategies.common.log import log
from strategies.storage.model_files import pack_model, read_model

SUFFIX = ".safetensors"


class Recalibrations:
    """The folder of these files.

    Parameters
    ----------
    folder : Path
        Created when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, plan_id: str, statistics: Arrays, record: Mapping[str, Any]) -> None:
        """Write the statistics of a model, and how they came about.

        Raises
        ------
        StorageError
            If they cannot be written.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(self._folder)
        seal(self._folder, plan_id, SUFFIX, pack_model(statistics, finite(record)))

    def read(self, plan_id: str) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]] | None:
        """Return what was written of a model; None if nothing was, or it is damaged."""
        for path in sealed_files(self._folder, SUFFIX):
            if path.name.split(".")[0] != plan_id:
                continue
            try:
                check_seal(path)
            except DamagedError as error:
                log(WARNING, "%s. The statistics are taken again", error)
                path.rename(path.with_name(f"{path.name}.damaged"))
            else:
                return read_model(path)
        return None
