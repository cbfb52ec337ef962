"""Digests of arrays that may be larger than memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 16 * 1024**2


def add_array(digest: Any, array: NDArray[np.generic]) -> None:
    """Add dtype, shape and values of an array to a digest of `hashlib`, a part at a time."""
    digest.update(f"{array.dtype} {array.shape}".encode())
    rows = np.atleast_1d(array)
    step = max(1, CHUNK_BYTES // max(1, rows.nbytes // max(1, len(rows))))
    for start in range(0, len(rows), step):  # never all of a mapped array in memory
        digest.update(np.ascontiguousarray(rows[start : start + step]).tobytes())
