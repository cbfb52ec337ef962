"""``image-folder:/abs/path``: ``train/`` and ``test/``, each with one folder per class."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdc_flower.data.cache import cached_arrays
from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.readers.class_folders import (
    ClassFolders,
    Files,
    class_folders,
    fingerprint,
    labels_of,
)
from mdc_flower.data.readers.images import DECODER_VERSION, decode_image
from mdc_flower.data.readers.owners import owners_of
from mdc_flower.data.readers.same_files import refuse_same_files
from strategies.common.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_image_folder(
    path: str, image_size: int, agreed: Sequence[str] = (), owners: str = ""
) -> DataSet:
    """Load the images of a folder as RGB arrays, decoded once and cached.

    Parameters
    ----------
    path
        Absolute path. Classes are the sorted folder names of ``train/``, unless they are agreed.
    image_size
        Height and width in pixels to which every image is resized (bilinear); 0 keeps the
        size, which must then be the same for all images.
    agreed
        The agreed classes; see `Reading.classes`.
    owners
        Where the owners of the images are named; see `owners_of`.

    Raises
    ------
    DataError
        If a folder is missing or has no images, if the classes of train and test differ,
        if a file is in both, cannot be decoded or has no owner, or if sizes differ. The error names
        the file.
    """
    found = class_folders(path, "image-folder", "images", Image.registered_extensions(), agreed)
    all_files = [file for files in found.splits.values() for file in files]
    key = fingerprint(all_files, image_size, len(found.validation), DECODER_VERSION)
    arrays = cached_arrays(
        f"image-folder-{key}",
        lambda: _decoded(found, image_size),
    )
    splits = {
        split: Examples(
            arrays[f"{split}_inputs"], labels_of(files), owners_of(Path(path), files, owners)
        )
        for split, files in found.splits.items()
    }
    return DataSet(
        name="image-folder",
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        class_names=found.class_names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def stack_images(
    images: Iterable[tuple[str, Image.Image]], count: int, image_size: int
) -> NDArray[np.uint8]:
    """Return RGB images as one array ``(count, 3, height, width)``.

    Parameters
    ----------
    images
        Pairs of a name, for errors, and an image.
    count
        Number of images.
    image_size
        Height and width in pixels to which they are resized; 0 keeps their size.

    Raises
    ------
    DataError
        If sizes differ and ``image_size`` is 0, or if there are no images.
    """
    stacked: NDArray[np.uint8] | None = None
    first = ""
    for row, (name, image) in enumerate(images):
        resized = image
        if image_size:
            resized = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        width, height = resized.size
        if stacked is None:
            stacked, first = np.empty((count, 3, height, width), dtype=np.uint8), name
        elif stacked.shape[2:] != (height, width):
            raise DataError(
                "images differ in size",
                where=name,
                got=f"{width}x{height}",
                expected=f"{stacked.shape[3]}x{stacked.shape[2]}, the size of {first}",
                hint="Set image-size to resize them all",
            )
        stacked[row] = np.asarray(resized).transpose(2, 0, 1)
    if stacked is None:
        raise DataError("there are no images")
    return stacked


def decode_images(files: Sequence[Path], image_size: int) -> NDArray[np.uint8]:
    """Return images in files as one array; see `stack_images`."""
    return _decode([(file, 0) for file in files], image_size)


def _decoded(found: ClassFolders, image_size: int) -> dict[str, NDArray[np.generic]]:
    """Return the images of each split; there may be none in the test split."""
    refuse_same_files(found.train, found.test, found.validation)
    inputs = {"train": _decode(found.train, image_size)}
    for split in found.splits.keys() - inputs.keys():
        files = found.splits[split]
        inputs[split] = _decode(files, image_size) if files else inputs["train"][:0]
    return {f"{split}_inputs": images for split, images in inputs.items()}


def _decode(files: Files, image_size: int) -> NDArray[np.uint8]:
    images = ((str(file), decode_image(file, str(file))) for file, _ in files)
    return stack_images(images, len(files), image_size)
