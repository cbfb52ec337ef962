"""From the name in a config to a checked data set."""

import difflib
from functools import lru_cache

from mdc_flower.data.builtin import BUILTIN
from mdc_flower.data.contract import CONTRACT, Contract
from mdc_flower.data.dataset import DataSet
from mdc_flower.data.image_folder import load_image_folder
from mdc_flower.references import load_reference
from strategies.errors import ConfigError, DataError

IMAGE_FOLDER = "image-folder:"


def own_module(spec: str) -> str:
    """Return the module of a user's own data set; empty for any other."""
    if spec in BUILTIN or spec.startswith((IMAGE_FOLDER, CONTRACT)):
        return ""
    module, separator, _ = spec.partition(":")
    return module if separator else ""


@lru_cache(maxsize=4)
def load_dataset(
    spec: str, data_root: str = "", image_size: int = 0, max_train: int = 0, max_test: int = 0
) -> DataSet:
    """Return a data set by name; repeated calls in a process return the same one.

    Parameters
    ----------
    spec
        A built-in name, ``image-folder:/abs/path``, ``module:function``, a function that
        takes no arguments and returns a `DataSet`, or a `Contract`, which gives a data set
        without examples.
    data_root
        Folder in which built-in data sets are looked for first.
    image_size
        Pixels; only for image folders, 0 keeps the images' size.
    max_train, max_test
        Examples to keep, 0 for all.

    Raises
    ------
    ConfigError
        If there is no such data set.
    DataError
        If it is missing or does not keep the contract of `DataSet`.
    """
    if spec.startswith(CONTRACT):
        return Contract.from_spec(spec).data_set()
    return _load(spec, data_root, image_size).checked().limited(max_train, max_test)


def _load(spec: str, data_root: str, image_size: int) -> DataSet:
    if spec in BUILTIN:
        return BUILTIN[spec](data_root)
    if spec.startswith(IMAGE_FOLDER):
        return load_image_folder(spec.removeprefix(IMAGE_FOLDER), image_size)
    if ":" in spec:
        dataset = load_reference(spec, "dataset")()
        if not isinstance(dataset, DataSet):
            raise DataError(
                "the function did not return a DataSet",
                where=f"dataset = {spec!r}",
                got=type(dataset).__name__,
                expected="mdc_flower.data.DataSet",
            )
        return dataset
    near = difflib.get_close_matches(spec, BUILTIN, n=1)
    raise ConfigError(
        "no such data set",
        where="dataset",
        got=spec,
        expected="one of: " + ", ".join([*BUILTIN, f"{IMAGE_FOLDER}/abs/path", "module:function"]),
        hint=f"Did you mean {near[0]!r}?" if near else "",
    )
