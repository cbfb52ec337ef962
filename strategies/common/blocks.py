"""Cut arrays into blocks, so that a computation needs no other array of the same size."""

from collections.abc import Iterator

BLOCK = 2**18
"""Elements in a block: small enough for a processor's cache, large enough to read from a disk."""


def blocks(size: int) -> Iterator[slice]:
    """Yield slices that cover an array with this number of elements; for 0 an empty one."""
    for start in range(0, max(size, 1), BLOCK):
        yield slice(start, min(start + BLOCK, size))
