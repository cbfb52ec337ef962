"""The data sets by name, read from files in the formats that they are published in."""

import gzip
import hashlib
import pickle
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from numpy.typing import NDArray

from mdc_flower.data import DataSet, load_dataset
from mdc_flower.data.readers import builtin
from mdc_flower.data.readers.builtin import BUILTIN, load_digits
from strategies.common.errors import DataError

NUM_TRAIN, NUM_TEST = 30, 12
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


# Digits


def test_digits_are_split_once_and_for_all() -> None:
    data = load_digits().checked()
    # 1,797 images; by class 178 182 177 183 181 182 181 179 174 180. Each fifth is a test
    # image: 35 36 35 36 36 36 36 35 34 36, which is 355.
    assert (len(data.train), len(data.test)) == (1442, 355)
    assert np.bincount(data.test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert np.bincount(data.train.labels).sum() == 1442
    assert list(data.class_names) == list("0123456789")
    assert data.input_shape == (1, 8, 8)


def test_digits_are_all_of_scikit_learns_each_on_one_side() -> None:
    from sklearn.datasets import load_digits as original

    data = load_digits()
    both = np.concatenate([data.train.inputs, data.test.inputs])[:, 0]
    # The darkest of 0 to 16 is 255: a value v becomes 255 v / 16, rounded.
    expected = np.rint(original().images * 255 / 16)
    assert sorted(image.tobytes() for image in both) == sorted(
        image.astype(np.uint8).tobytes() for image in expected
    )
    assert (both.min(), both.max()) == (0, 255)


def test_digits_without_scikit_learn_are_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    with pytest.raises(DataError, match="scikit-learn"):
        load_digits()


def test_no_digit_is_both_in_train_and_in_test() -> None:
    data = load_digits()
    train = {image.tobytes() for image in data.train.inputs}
    assert not train & {image.tobytes() for image in data.test.inputs}


def test_the_digits_statistics_are_those_of_the_training_images() -> None:
    data = load_digits()
    scaled = np.asarray(data.train.inputs, np.float64) / 255
    assert data.mean == pytest.approx([scaled.mean()], abs=1e-3)
    assert data.std == pytest.approx([scaled.std()], abs=1e-3)


# Fashion-MNIST


def grey(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    """Return an array in the IDX format: magic number 8 (bytes) and axes, sizes, values."""
    head = struct.pack(">HBB", 0, 8, array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, packed: bool, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for prefix, count, offset in (("train", NUM_TRAIN, 0), ("t10k", NUM_TEST, 1)):
        images, labels = grey(count, seed + offset)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            if packed:
                (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
            else:
                (folder / f"{prefix}-{name}-ubyte").write_bytes(content)


@pytest.fixture(autouse=True)
def debian(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have Debian's package in a folder of the test's own, which is not there yet."""
    folder = tmp_path / "debian"
    monkeypatch.setattr(builtin, "DEBIAN_FASHION_MNIST", folder)
    source = builtin.TorchvisionSource(
        "fashion-mnist", "FashionMNIST", (0.286,), (0.353,), (folder,)
    )
    monkeypatch.setitem(BUILTIN, "fashion-mnist", source.load)
    return folder


def is_fashion(data: DataSet, seed: int = 0) -> bool:
    for part, (images, labels) in (
        (data.train, grey(NUM_TRAIN, seed)),
        (data.test, grey(NUM_TEST, seed + 1)),
    ):
        assert part.inputs.dtype == np.uint8
        assert part.labels.dtype == np.int64
        assert part.labels.tolist() == labels.tolist()
        if not np.array_equal(part.inputs, images[:, None]):
            return False
    return True


def test_fashion_mnist_is_read_from_debians_package(debian: Path) -> None:
    write_idx(debian, packed=True)
    data = load_dataset("fashion-mnist")
    assert is_fashion(data)
    assert data.input_shape == (1, 28, 28)
    assert list(data.class_names) == list(FASHION)
    assert (data.mean, data.std) == ((0.286,), (0.353,))


@pytest.mark.parametrize("files", [0, 3])
def test_debians_package_counts_only_if_it_is_whole(debian: Path, files: int) -> None:
    write_idx(debian, packed=True)
    for path in sorted(debian.iterdir())[files:]:
        path.unlink()
    with pytest.raises(DataError, match="not on this machine"):
        load_dataset("fashion-mnist")


def test_debians_files_are_left_as_they_are(debian: Path) -> None:
    write_idx(debian, packed=True)
    before = {path.name: path.read_bytes() for path in debian.iterdir()}
    load_dataset("fashion-mnist")
    assert {path.name: path.read_bytes() for path in debian.iterdir()} == before


def test_fashion_mnist_is_read_from_the_data_root(tmp_path: Path) -> None:
    write_idx(tmp_path / "data" / "FashionMNIST" / "raw", packed=False)
    assert is_fashion(load_dataset("fashion-mnist", str(tmp_path / "data")))


def test_the_data_root_goes_before_the_system(debian: Path, tmp_path: Path) -> None:
    write_idx(debian, packed=True, seed=0)
    write_idx(tmp_path / "data" / "FashionMNIST" / "raw", packed=False, seed=50)
    assert is_fashion(load_dataset("fashion-mnist", str(tmp_path / "data")), seed=50)
    assert is_fashion(load_dataset("fashion-mnist"), seed=0)


def test_a_data_root_without_the_files_is_no_reason_not_to_look_further(
    debian: Path, tmp_path: Path
) -> None:
    write_idx(debian, packed=True)
    assert is_fashion(load_dataset("fashion-mnist", str(tmp_path / "empty")))


def test_a_data_root_below_the_home_folder_may_be_written_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx(tmp_path / "data" / "FashionMNIST" / "raw", packed=False)
    assert is_fashion(load_dataset("fashion-mnist", "~/data"))


def test_what_was_read_once_is_mapped_and_not_read_again(debian: Path) -> None:
    write_idx(debian, packed=True)
    load_dataset("fashion-mnist")
    for path in debian.iterdir():
        path.unlink()
    load_dataset.cache_clear()
    data = load_dataset("fashion-mnist")
    assert is_fashion(data)
    assert isinstance(data.train.inputs, np.memmap)


# CIFAR


def colour(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def write_pickle(path: Path, content: Mapping[str, object]) -> str:
    """Write a file as CIFAR is published, and return its MD5, which torchvision checks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(dict(content)))
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


CLASSES10 = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a small CIFAR-10 of five batches and a small CIFAR-100."""
    ten, hundred = torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100
    folder = tmp_path / "data" / "cifar-10-batches-py"
    images = colour(NUM_TRAIN, 0).reshape(5, -1, 3072)
    batches = [
        [
            f"data_batch_{i + 1}",
            write_pickle(
                folder / f"data_batch_{i + 1}",
                {"data": images[i], "labels": [(6 * i + k) % 10 for k in range(6)]},
            ),
        ]
        for i in range(5)
    ]
    test = {"data": colour(NUM_TEST, 1).reshape(-1, 3072), "labels": [9] * NUM_TEST}
    monkeypatch.setattr(ten, "train_list", batches)
    digest = write_pickle(folder / "test_batch", test)
    monkeypatch.setattr(ten, "test_list", [["test_batch", digest]])
    digest = write_pickle(folder / "batches.meta", {"label_names": CLASSES10})
    monkeypatch.setattr(ten, "meta", {**ten.meta, "md5": digest})

    folder = tmp_path / "data" / "cifar-100-python"
    fine = {"data": colour(100, 2).reshape(-1, 3072), "fine_labels": list(range(100))}
    monkeypatch.setattr(hundred, "train_list", [["train", write_pickle(folder / "train", fine)]])
    monkeypatch.setattr(hundred, "test_list", [["test", write_pickle(folder / "test", fine)]])
    names = {"fine_label_names": [f"class {i}" for i in range(100)]}
    digest = write_pickle(folder / "meta", names)
    monkeypatch.setattr(hundred, "meta", {**hundred.meta, "md5": digest})
    return tmp_path / "data"


def test_cifar10_is_read_from_the_data_root(cifar: Path) -> None:
    data = load_dataset("cifar10", str(cifar))
    assert np.array_equal(data.train.inputs, colour(NUM_TRAIN, 0))
    assert np.array_equal(data.test.inputs, colour(NUM_TEST, 1))
    assert data.train.labels.tolist() == [row % 10 for row in range(NUM_TRAIN)]
    assert data.test.labels.tolist() == [9] * NUM_TEST
    assert data.class_names == CLASSES10
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2470, 0.2435, 0.2616)


def test_cifar100_has_its_fine_classes(cifar: Path) -> None:
    data = load_dataset("cifar100", str(cifar))
    assert np.array_equal(data.train.inputs, colour(100, 2))
    assert data.train.labels.tolist() == list(range(100))
    assert data.class_names == [f"class {i}" for i in range(100)]
    assert data.mean == (0.5071, 0.4865, 0.4409)


def test_a_damaged_file_is_as_one_that_is_not_there(cifar: Path) -> None:
    file = cifar / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="not on this machine"):
        load_dataset("cifar10", str(cifar))


# Not there


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
@pytest.mark.parametrize("with_root", [True, False])
def test_offline_the_error_lists_every_place_that_was_looked_in(
    name: str, with_root: bool, tmp_path: Path, cache: Path, debian: Path
) -> None:
    root = str(tmp_path / "data") if with_root else ""
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        load_dataset(name, root)
    error = caught.value
    places = [
        *([root] if with_root else []),
        *([str(debian)] if name == "fashion-mnist" else []),
        str(cache / "torchvision"),
    ]
    assert error.where == f"dataset = {name!r}"
    assert error.expected == "its files in one of: " + ", ".join(places)
    assert "data-root" in error.hint
    assert "no network in tests" in str(error)


def test_after_a_failed_download_the_files_are_found_when_they_are_there(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load_dataset("fashion-mnist", str(tmp_path / "data"))
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    if raw.exists():
        raw.rmdir()  # torchvision makes the folder before it downloads
    write_idx(raw, packed=False)
    assert is_fashion(load_dataset("fashion-mnist", str(tmp_path / "data")))
