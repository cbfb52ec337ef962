"""Stores the outcomes of recalibrations, one sealed file per model.

A file is written when its recalibration is complete. A resumed run finds it and asks no site again.
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
from strategies.storage.model_files import model_parts, read_model

SUFFIX = ".safetensors"


class Recalibrations:
    """The outcomes of recalibrations in a folder.

    Parameters
    ----------
    folder : Path
        Folder of the files; created when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, plan_id: str, statistics: Arrays, record: Mapping[str, Any]) -> None:
        """Write the statistics of a model and the record of their recalibration.

        Raises
        ------
        StorageError
            If they cannot be written.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(self._folder)
        seal(self._folder, plan_id, SUFFIX, model_parts(statistics, finite(record)))

    def read(self, plan_id: str) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]] | None:
        """Return the statistics and the record of a model; None if missing or damaged."""
        for path in sealed_files(self._folder, SUFFIX):
            if path.name.split(".")[0] != plan_id:
                continue
            try:
                check_seal(path)
            except DamagedError as error:
                log(WARNING, "%s. The statistics are computed again", error)
                path.rename(path.with_name(f"{path.name}.damaged"))
            else:
                return read_model(path)
        return None
