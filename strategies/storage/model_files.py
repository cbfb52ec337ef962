"""Stores arrays in safetensors files: equal models give equal bytes; arrays are memory-mapped."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from strategies.aggregation.averaging import Arrays
from strategies.common.errors import RunError
from strategies.common.fault_points import reach
from strategies.common.files import check_seal, stamp

METADATA_KEY = "mdc-flower"

HEADER_START = 8
"""Bytes at the start of a safetensors file that hold the length of its header."""

DTYPES = {
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
    "C64": np.dtype("<c8"),
}
"""NumPy's dtypes by their names in safetensors files."""


def model_parts(arrays: Arrays, metadata: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file, one array at a time; equal models give equal bytes.

    They are the bytes that `safetensors.numpy.save` returns, which needs the whole model in memory
    once more.
    """
    # Use one metadata key: safetensors writes several keys in an order that differs between
    # processes, so equal models would give different files.
    about = {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    # safetensors chooses the order by name and dtype, whatever the shape.
    empty = {name: np.empty(0, array.dtype) for name, array in arrays.items()}
    header = _header(save(empty, about))
    end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            array, start = arrays[name], end
            end += array.nbytes
            entry |= {"shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in list(header)[1:]:
        yield _bytes_of(arrays[name])


def _header(start: bytes) -> dict[str, Any]:
    """Return the header of a safetensors file; ``start`` are its first bytes."""
    end = HEADER_START + int.from_bytes(start[:HEADER_START], "little")
    return dict(json.loads(start[HEADER_START:end]))


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def read_model(path: Path) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    """Return the arrays and the metadata of a model file.

    Raises
    ------
    RunError
        If the file is missing, is damaged, or was not written by this project.
    """
    stored = StoredArrays(path)
    return {name: array.copy() for name, array in stored.items()}, stored.metadata


class StoredArrays(Mapping[str, NDArray[np.generic]]):
    """The arrays of a file, which is mapped into memory while they are used.

    So only what is being read needs memory. When none of the arrays is used any more, the file is
    unmapped and closed. Changing an array does not change the file.

    Parameters
    ----------
    path : Path
        The file.
    names : iterable of str or None
        Names of the arrays, and their order; by default all, in the order of the file.

    Raises
    ------
    RunError
        On first use, if the file is missing, is damaged, or was not written by this project.
    """

    def __init__(self, path: Path, names: Iterable[str] | None = None) -> None:
        self.path = path
        self._order = None if names is None else dict.fromkeys(names)
        self._map: Callable[[], mmap | None] = lambda: None

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
        """Return one array, mapped from the file now."""
        if name not in self._names:
            raise KeyError(name)
        shape, dtype, offset = self._layout[name]
        reach("array-read", path=str(self.path))
        try:
            return np.ndarray(shape, dtype, self._mapped(), offset)
        except TypeError as error:
            raise self._damaged(f"array {name!r}: {error}") from None

    def _mapped(self) -> mmap:
        if (mapped := self._map()) is not None:
            return mapped
        try:
            with self.path.open("rb") as file:
                mapped = mmap(file.fileno(), 0, access=ACCESS_COPY)
        except FileNotFoundError:
            raise self._missing() from None
        except (OSError, ValueError) as error:
            raise self._damaged(error) from None
        self._map = ref(mapped)
        return mapped

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._names)

    @cached_property
    def _names(self) -> dict[str, None]:
        return self._order if self._order is not None else dict.fromkeys(self._layout)

    @cached_property
    def _layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any], int]]:
        """Shape and dtype of each array, and where it begins in the file."""
        with self._opened(), self.path.open("rb") as file:  # the first of them checks the header
            length = file.read(HEADER_START)
            header = _header(length + file.read(int.from_bytes(length, "little")))
        header.pop("__metadata__", None)
        begin = HEADER_START + int.from_bytes(length, "little")
        try:
            return {
                name: (tuple(of["shape"]), DTYPES[of["dtype"]], begin + of["data_offsets"][0])
                for name, of in header.items()
            }
        except KeyError as error:
            raise self._damaged(f"dtype {error} is not one of NumPy") from None

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                yield file
        except FileNotFoundError:
            raise self._missing() from None
        except safetensors.SafetensorError as error:
            raise self._damaged(error) from None

    def _missing(self) -> RunError:
        return RunError("there is no model here", where=str(self.path))

    def _damaged(self, why: object) -> RunError:
        return RunError(f"the model file is damaged: {why}", where=str(self.path))


class SealedArrays(StoredArrays):
    """The arrays of a sealed file, which is compared with its checksum.

    It is compared before the first read, and again whenever it has been written or replaced.

    Parameters
    ----------
    path, names
        As for `StoredArrays`.
    intact : bool
        Whether the file was compared just now, or its checksum computed from what was written.

    Raises
    ------
    DamagedError
        On a read, if the file does not match its checksum.
    """

    def __init__(
        self, path: Path, names: Iterable[str] | None = None, *, intact: bool = False
    ) -> None:
        super().__init__(path, names)
        self._stamp = stamp(path) if intact else None

    def check(self) -> None:
        """Raise `DamagedError` if the file is missing or does not match its checksum."""
        now = stamp(self.path)
        if now is None or now != self._stamp:
            check_seal(self.path)
            self._stamp = now

    def _mapped(self) -> mmap:
        self.check()
        return super()._mapped()
