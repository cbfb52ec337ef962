"""A digest of a data set, to tell which data a result belongs to."""

import hashlib

import numpy as np

from mdc_flower.config import RunConfig
from mdc_flower.data import Examples, load_dataset


def data_digest(config: RunConfig) -> str:
    """Return the SHA-256, in hex, of a config's examples before they are partitioned into sites.

    The partition follows from the examples and the config. File locations do not matter.

    Raises
    ------
    ConfigError, DataError
        See `load_dataset`.
    """
    dataset = load_dataset(
        config.dataset,
        config.data_root,
        config.reading(),
        config.max_train_examples,
        config.max_test_examples,
    )
    about = (list(dataset.class_names), [*map(float, dataset.mean)], [*map(float, dataset.std)])
    digest = hashlib.sha256(repr(about).encode())
    for examples in (dataset.train, dataset.test):
        _add(digest, examples)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", examples: Examples) -> None:
    for array in (examples.inputs, examples.labels):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    if examples.groups is not None:
        digest.update("\0".join(map(str, examples.groups.tolist())).encode())
