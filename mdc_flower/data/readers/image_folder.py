"""``image-folder:/abs/path``: ``train/`` and ``test/``, each with one folder per class."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdc_flower.data.cache import cached_arrays
from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.readers.class_folders import Files, class_folders, fingerprint, labels_of
from mdc_flower.data.readers.images import DECODER_VERSION, decode_image
from strategies.common.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_image_folder(path: str, image_size: int) -> DataSet:
    """Load the images of a folder as RGB arrays, decoded once and cached.

    Parameters
    ----------
    path
        Absolute path. Classes are the sorted folder names of ``train/``.
    image_size
        Height and width in pixels to which every image is resized (bilinear); 0 keeps the
        size, which must then be the same for all images.

    Raises
    ------
    DataError
        If a folder is missing or has no images, if the classes of train and test differ,
        if a file cannot be decoded, or if sizes differ. The error names the file.
    """
    found = class_folders(path, "image-folder", "images", Image.registered_extensions())
    arrays = cached_arrays(
        f"image-folder-{fingerprint([*found.train, *found.test], image_size, DECODER_VERSION)}",
        lambda: {
            "train_inputs": _decode(found.train, image_size),
            "test_inputs": _decode(found.test, image_size),
        },
    )
    return DataSet(
        name="image-folder",
        train=Examples(arrays["train_inputs"], labels_of(found.train)),
        test=Examples(arrays["test_inputs"], labels_of(found.test)),
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


def _decode(files: Files, image_size: int) -> NDArray[np.uint8]:
    images = ((str(file), decode_image(file, str(file))) for file, _ in files)
    return stack_images(images, len(files), image_size)
