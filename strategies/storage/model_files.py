"""Stores arrays in safetensors files: equal models give equal bytes; arrays are read one by one."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from strategies.aggregation.averaging import Arrays
from strategies.common.errors import RunError
from strategies.common.fault_points import reach

METADATA_KEY = "mdc-flower"


def pack_model(arrays: Arrays, metadata: Mapping[str, Any]) -> bytes:
    """Return a model as the bytes of a safetensors file; equal models give equal bytes."""
    # Use one metadata key: safetensors writes several keys in an order that differs between
    # processes, so equal models would give different files.
    text = json.dumps(metadata, sort_keys=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # ascontiguousarray turns a scalar into an array of one element; restore its shape.
    shaped = {name: array.reshape(arrays[name].shape) for name, array in contiguous.items()}
    return save(shaped, metadata={METADATA_KEY: text})


def read_model(path: Path) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    """Return the arrays and the metadata of a model file.

    Raises
    ------
    RunError
        If the file is missing, is damaged, or was not written by this project.
    """
    stored = StoredArrays(path)
    return dict(stored), stored.metadata


class StoredArrays(Mapping[str, NDArray[np.generic]]):
    """The arrays of a file, each read on access through a memory map.

    The file is closed and unmapped after each access, so a process that goes through many files
    holds only one array of one file.

    Raises
    ------
    RunError
        On first use, if the file is missing, is damaged, or was not written by this project.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Return the metadata written with the arrays."""
        with self._opened() as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            raise RunError(
                "the file does not say how to rebuild the model",
                where=str(self.path),
                expected=f"safetensors metadata with the key {METADATA_KEY!r}",
            )
        try:
            return dict(json.loads(text))
        except (TypeError, ValueError) as error:
            raise self._damaged(f"metadata: {error}") from None

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        """Return one array, read from the file now."""
        if name not in self._names:
            raise KeyError(name)
        reach("array-read", path=str(self.path))
        with self._opened() as file:
            array: NDArray[np.generic] = file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order of the file."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._names)

    @cached_property
    def _names(self) -> dict[str, None]:
        with self._opened() as file:
            return dict.fromkeys(file.keys())

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                yield file
        except FileNotFoundError:
            raise RunError("there is no model here", where=str(self.path)) from None
        except safetensors.SafetensorError as error:
            raise self._damaged(error) from None

    def _damaged(self, why: object) -> RunError:
        return RunError(f"the model file is damaged: {why}", where=str(self.path))
