"""Images and recordings in single files as a model's inputs, whatever folders they lie in."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdc_flower.data.readers.audio import SUFFIXES, log_mel
from mdc_flower.data.readers.image_folder import decode_images
from mdc_flower.data.readers.options import Reading

Inputs = NDArray[np.generic]

DECODERS: dict[str, Callable[[Sequence[Path], Reading], Inputs]] = {
    "image": lambda files, reading: decode_images(files, reading.image_size),
    "audio": lambda files, reading: np.stack(
        [log_mel(file, str(file), reading.audio) for file in files]
    ),
}
"""Functions that decode files into one array, by kind."""


def suffixes_of(kind: str) -> frozenset[str]:
    """Return the suffixes of the files of a kind, in lower case."""
    return frozenset(Image.registered_extensions()) if kind == "image" else SUFFIXES


def files_below(folder: Path) -> list[Path]:
    """Return the files at any depth, sorted, also below links to folders.

    Hidden files and folders, which systems leave behind, do not count, nor do links to a folder
    above.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and (here / name).resolve() not in (here, *here.parents)
        ]
        found += [Path(place, name) for name in names if name[0] != "."]
    return sorted(found)
