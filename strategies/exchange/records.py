"""Look at the records in a message without copying them, or keeping them in memory."""

import math
from io import BytesIO
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

LONGEST_HEADER = 2**16
"""Bytes in which the header of an array of plain numbers must end."""

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)


def records_of(content: RecordDict, kind: type[R]) -> dict[str, R]:
    """Return the records of one kind in a message.

    `RecordDict.array_records` and its like are not used: each call makes a reference cycle, and
    with it the message's model stays in memory until Python's cyclic garbage collector runs.
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def packed_array(dtype: str, shape: tuple[int, ...], stype: str, data: memoryview) -> Array:
    """Return an array of a record whose bytes stay where they are, such as in a map of a file.

    Flower's `Array` accepts only `bytes` when it is created, and any buffer later.
    """
    array = Array(dtype, shape, stype, b"")
    array.data = data  # type: ignore[assignment]
    return array


def record_views(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """Return a record's arrays by name as read-only views of its bytes; see `view_of`."""
    return {name: view_of(array) for name, array in record.items()}


def view_of(packed: Array) -> NDArray[np.generic]:
    """Return one array of a record as a read-only view of its bytes.

    The bytes are copied only if they are in the order of Fortran, or not aligned.

    Raises
    ------
    ValueError
        If the bytes are not one array of plain numbers.
    """
    file = BytesIO(memoryview(packed.data)[:LONGEST_HEADER])
    if npy.read_magic(file) == (1, 0):
        shape, in_columns, dtype = npy.read_array_header_1_0(file)
    else:
        shape, in_columns, dtype = npy.read_array_header_2_0(file)
    if packed.stype != "numpy.ndarray" or dtype.hasobject:
        raise ValueError(f"an array of {dtype} as {packed.stype}")
    count = math.prod(shape)
    flat = np.frombuffer(packed.data, dtype, count, file.tell()) if count else np.empty(0, dtype)
    return np.require(flat.reshape(shape, order="F" if in_columns else "C"), None, ["C", "A"])
