"""The built-in data sets: digits, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

import gzip
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdc_flower.common.extras import install_command
from mdc_flower.data.cache import cache_dir, cached_arrays, machine_lock
from mdc_flower.data.dataset import DataSet, Examples
from strategies.common.errors import DataError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def load_digits() -> DataSet:
    """Load scikit-learn's digits: 1,797 real 8x8 images, one channel, values 0 to 16.

    scikit-learn defines no split, so it is fixed here: every fifth image of each class is a test
    image (355 in total). Values are scaled to 0 to 255.

    Raises
    ------
    DataError
        If scikit-learn is not installed.
    """
    table = np.loadtxt(_digits_file(), delimiter=",")  # 64 pixels and the label in each row
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[4::5]] = True
    return DataSet(
        name="digits",
        train=Examples(images[~test], labels[~test]),
        test=Examples(images[test], labels[test]),
        class_names=[str(label) for label in range(10)],
        mean=(0.305,),
        std=(0.376,),
    )


def _digits_file() -> Path:
    # Importing scikit-learn takes seconds in every process of a run; the file alone is enough.
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    raise DataError(
        "scikit-learn, which contains the digits, is not installed",
        where="dataset = 'digits'",
        hint=f"Install it with: {install_command('simulation')}",
    )


@dataclass(frozen=True)
class TorchvisionSource:
    """A data set that torchvision can read and download.

    ``mean`` and ``std`` are the customary per-channel statistics of its training images.
    """

    name: str
    class_name: str
    mean: Sequence[float]
    std: Sequence[float]
    places: tuple[Path, ...] = ()

    def load(self, data_root: str) -> DataSet:
        """Load the data set from ``data_root``, a system folder, or a one-time download."""
        # The public data sets do not change, so the key needs only the place.
        place = hashlib.sha256(data_root.encode()).hexdigest()[:12]
        arrays = cached_arrays(f"{self.name}-{place}", lambda: self._decode(data_root))
        return DataSet(
            name=self.name,
            train=Examples(arrays["train_inputs"], np.asarray(arrays["train_labels"], np.int64)),
            test=Examples(arrays["test_inputs"], np.asarray(arrays["test_labels"], np.int64)),
            class_names=[str(name) for name in arrays["class_names"]],
            mean=self.mean,
            std=self.std,
        )

    def _decode(self, data_root: str) -> dict[str, NDArray[np.generic]]:
        root = self._root(data_root)
        train, test = self._read(root, True, False), self._read(root, False, False)
        return {
            "train_inputs": _channels_first(train.data),
            "train_labels": np.asarray(train.targets, dtype=np.int64),
            "test_inputs": _channels_first(test.data),
            "test_labels": np.asarray(test.targets, dtype=np.int64),
            "class_names": np.asarray(train.classes),
        }

    def _root(self, data_root: str) -> Path:
        """Return the first folder where torchvision finds the files; otherwise download them."""
        own = cache_dir() / "torchvision"
        looked_in = [*([Path(data_root).expanduser()] if data_root else []), *self.places, own]
        with machine_lock(f"torchvision-{self.name}"):
            for place in looked_in:
                root = _unpacked_debian(own) if place == DEBIAN_FASHION_MNIST else place
                if root is not None and self._is_in(root):
                    return root
            download_to = looked_in[0] if data_root else own
            try:
                self._read(download_to, True, True)
                self._read(download_to, False, True)
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"the data set is not on this machine, and cannot be downloaded ({error})",
                    where=f"dataset = {self.name!r}",
                    expected="its files in one of: " + ", ".join(str(p) for p in looked_in),
                    hint="Put the files there, or set data-root to their folder",
                ) from None
            return download_to

    def _is_in(self, root: Path) -> bool:
        try:
            self._read(root, True, False)
        except (OSError, RuntimeError):
            return False
        return True

    def _read(self, root: Path, train: bool, download: bool) -> Any:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, self.class_name)
        return kind(root=str(root), train=train, download=download)


def _unpacked_debian(own: Path) -> Path | None:
    """Unpack Debian's Fashion-MNIST for torchvision; return None if it is not installed."""
    packed = sorted(DEBIAN_FASHION_MNIST.glob("*-ubyte.gz"))
    if len(packed) != 4:
        return None
    raw = own / "debian" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for path in packed:
        target = raw / path.stem
        if not target.exists():
            temporary = target.with_suffix(".tmp")
            with gzip.open(path) as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            temporary.rename(target)
    return own / "debian"


def _channels_first(images: Any) -> NDArray[np.uint8]:
    """Return images as uint8 (N, C, H, W), from (N, H, W) or (N, H, W, C)."""
    array = np.asarray(images, dtype=np.uint8)
    channels_last = array[..., None] if array.ndim == 3 else array
    return np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))


_TORCHVISION = (
    TorchvisionSource("fashion-mnist", "FashionMNIST", (0.286,), (0.353,), (DEBIAN_FASHION_MNIST,)),
    TorchvisionSource("cifar10", "CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    TorchvisionSource("cifar100", "CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
)

BUILTIN: dict[str, Callable[[str], DataSet]] = {
    "digits": lambda data_root: load_digits(),
    **{source.name: source.load for source in _TORCHVISION},
}
"""Data sets by name; each takes ``data-root``."""
