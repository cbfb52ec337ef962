"""``image-folder:/abs/path``: folders ``train/`` and ``test/``, each with a folder a class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdc_flower.data.cache import cached_arrays
from mdc_flower.data.dataset import DataSet, Examples
from strategies.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Files = Sequence[tuple[Path, int]]


def load_image_folder(path: str, image_size: int) -> DataSet:
    """Return the images of a folder, decoded once and cached as RGB arrays.

    Parameters
    ----------
    path
        Absolute path. Classes are the sorted folder names of ``train/``.
    image_size
        Height and width in pixels that every image is resized to (bilinear); 0 keeps the
        images' size, which must then be the same for all.

    Raises
    ------
    DataError
        If a folder is missing or has no images, if the classes of train and test differ,
        if a file cannot be decoded, or if sizes differ; naming the file.
    """
    root = Path(path)
    if not root.is_absolute():
        raise DataError("the path is not absolute", where="image-folder", got=path)
    classes = _classes(root / "train")
    test_classes = _classes(root / "test")
    if not set(test_classes) <= set(classes):
        raise DataError(
            "the test folder has a class that the training folder does not have",
            where=str(root),
            got=sorted(set(test_classes) - set(classes))[0],
            expected="one of: " + ", ".join(classes),
        )
    train, test = (_files(root / split, classes) for split in ("train", "test"))
    arrays = cached_arrays(
        f"image-folder-{_fingerprint([*train, *test], image_size)}",
        lambda: {
            "train_inputs": _decode(train, image_size),
            "test_inputs": _decode(test, image_size),
        },
    )
    return DataSet(
        name="image-folder",
        train=Examples(arrays["train_inputs"], _labels(train)),
        test=Examples(arrays["test_inputs"], _labels(test)),
        class_names=classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            "the folder is missing",
            where=str(folder),
            expected="train/ and test/ below the data folder, each with a folder a class",
        )
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if len(classes) < 2:
        raise DataError(
            "there are fewer than two class folders", where=str(folder), got=len(classes)
        )
    return classes


def _files(folder: Path, classes: Sequence[str]) -> Files:
    known = Image.registered_extensions()
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).glob("**/*"))
        if file.suffix.lower() in known
    ]
    if not files:
        raise DataError("there are no images", where=str(folder))
    seen = {label for _, label in files}
    if folder.name == "train" and len(seen) < len(classes):
        bare = next(name for label, name in enumerate(classes) if label not in seen)
        raise DataError("the class has no images to train on", where=str(folder / bare))
    return files


def _labels(files: Files) -> NDArray[np.int64]:
    return np.array([label for _, label in files], dtype=np.int64)


def _fingerprint(files: Files, image_size: int) -> str:
    """Return a digest that changes when a file is added, removed or rewritten."""
    digest = hashlib.sha256(f"{image_size}".encode())
    for file, label in files:
        status = file.stat()
        digest.update(f"{file}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _decode(files: Files, image_size: int) -> NDArray[np.uint8]:
    size = (image_size, image_size) if image_size else _image(files[0][0]).size
    images = np.empty((len(files), 3, size[1], size[0]), dtype=np.uint8)
    for row, (file, _) in enumerate(files):
        image = _image(file)
        if image_size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        elif image.size != size:
            raise DataError(
                "images differ in size",
                where=str(file),
                got=f"{image.size[0]}x{image.size[1]}",
                expected=f"{size[0]}x{size[1]}, the size of {files[0][0]}",
                hint="Set image-size to resize them all",
            )
        images[row] = np.asarray(image).transpose(2, 0, 1)
    return images


def _image(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # each format's decoder raises what it likes
        raise DataError(f"the image cannot be decoded: {error}", where=str(file)) from None
