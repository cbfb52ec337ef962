"""Files that are in both splits: a test on what was trained on would tell nothing."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from strategies.common.errors import DataError

SHOWN = 3


def refuse_same_files(
    train: Sequence[tuple[Path, int]], *others: Sequence[tuple[Path, int]]
) -> None:
    """Refuse files of other splits whose content is that of a training file.

    Only files of the same size are read; call it where all files are read anyway.

    Raises
    ------
    DataError
        Naming the first pairs.
    """
    there = (file for split in others for file, _ in split)
    if pairs := same_content((file for file, _ in train), there):
        shown = ", ".join(f"{one} and {other}" for one, other in pairs[:SHOWN])
        raise DataError(
            "files of another split are among the training files as well",
            where=str(pairs[0][1]),
            got=shown + (", ..." if len(pairs) > SHOWN else ""),
            expected="different files in each split",
            hint="Remove one of each pair: a result on trained examples says nothing",
        )


def same_content(ones: Iterable[Path], others: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Return the pairs of files, one of each, that have the same content."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for file in ones:
        sizes[file.stat().st_size].append(file)
    digests: dict[int, dict[bytes, Path]] = {}
    pairs = []
    for file in others:
        size = file.stat().st_size
        if size not in sizes:
            continue
        if size not in digests:
            digests[size] = {_digest(one): one for one in reversed(sizes[size])}
        if (same := digests[size].get(_digest(file))) is not None:
            pairs.append((same, file))
    return pairs


def _digest(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
