"""Cut arrays into blocks, so that a computation needs no other array of the same size."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 2**18
"""Elements in a block: small enough for a processor's cache, large enough to read from a disk."""


def blocks(size: int) -> Iterator[slice]:
    """Yield slices that cover an array with this number of elements; for 0 an empty one."""
    for start in range(0, max(size, 1), BLOCK):
        yield slice(start, min(start + BLOCK, size))


def all_finite(array: NDArray[Any]) -> bool:
    """Return whether an array has neither NaN nor infinity; other types than floats never do."""
    if not np.issubdtype(array.dtype, np.inexact):
        return True
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[block]).all()) for block in blocks(flat.size))
