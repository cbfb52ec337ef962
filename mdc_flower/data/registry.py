"""Load and check the data set that a config names."""

import difflib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from mdc_flower.common.references import load_reference, relative_paths_explained
from mdc_flower.data.contract import CONTRACT, Contract
from mdc_flower.data.dataset import DataSet
from mdc_flower.data.readers.audio import load_audio_folder, load_audio_manifest
from mdc_flower.data.readers.builtin import BUILTIN
from mdc_flower.data.readers.hub import hub_train_texts, load_hub
from mdc_flower.data.readers.image_folder import load_image_folder
from mdc_flower.data.readers.options import Reading
from mdc_flower.data.readers.text import load_text_folder, train_texts
from strategies.common.errors import ConfigError, DataError

HUB = "hf"

READERS: dict[str, Callable[[str, Reading], DataSet]] = {
    "image-folder": lambda path, reading: load_image_folder(
        path, reading.image_size, reading.classes, reading.columns.groups
    ),
    "audio-folder": lambda path, reading: load_audio_folder(
        path, reading.audio, reading.classes, reading.columns.groups
    ),
    "audio-manifest": lambda path, reading: load_audio_manifest(
        path, reading.audio, reading.classes
    ),
    "text-folder": lambda path, reading: load_text_folder(
        path, reading.text, reading.columns, reading.classes
    ),
    HUB: lambda name, reading: load_hub(name, reading),
}
"""Readers of ``KIND:/abs/path`` and ``hf:NAME``, by kind."""

TEXT_READERS: dict[str, Callable[[str, Reading], Sequence[str]]] = {
    "text-folder": lambda path, reading: train_texts(path, reading.columns.inputs),
    HUB: hub_train_texts,
}
"""Readers of the training texts only, by kind."""

PLAIN = Reading()


def user_module(spec: str) -> str:
    """Return the module of a user's data set; empty for any other data set."""
    kind, separator, _ = spec.partition(":")
    return kind if separator and kind not in READERS and not spec.startswith(CONTRACT) else ""


@lru_cache(maxsize=4)
def load_dataset(
    spec: str,
    data_root: str = "",
    reading: Reading = PLAIN,
    max_train: int = 0,
    max_test: int = 0,
) -> DataSet:
    """Return a data set by name; repeated calls in a process return the same object.

    Parameters
    ----------
    spec
        A built-in name; ``KIND:PATH`` with a kind in `READERS`; ``hf:NAME``;
        ``module:function``, a function without arguments that returns a `DataSet`; or a
        `Contract`, which gives a data set without examples.
    data_root
        Folder where built-in data sets are searched first, and to which a relative path
        is relative.
    reading
        How files become examples.
    max_train, max_test
        Numbers of examples to keep; 0 for all.

    Raises
    ------
    ConfigError
        If there is no such data set.
    DataError
        If it is missing, or `DataSet.checked` refuses it.
    """
    dataset = load_unchecked(spec, data_root, reading)
    if spec.startswith(CONTRACT):
        return dataset
    return dataset.checked(needs_test=not reading.classes).limited(max_train, max_test)


def load_unchecked(spec: str, data_root: str = "", reading: Reading = PLAIN) -> DataSet:
    """Return a data set as it is read, before `DataSet.checked`; see `load_dataset`."""
    if spec.startswith(CONTRACT):
        return Contract.from_spec(spec).data_set()
    return _load(spec, data_root, reading)


def training_texts(spec: str, data_root: str = "", reading: Reading = PLAIN) -> Sequence[str]:
    """Return all training texts, from which a data set without a vocabulary file makes its own.

    Some of them are held out for validation, depending on the run's seed.

    Raises
    ------
    ConfigError
        If mdc-flower does not tokenize the texts of this kind of data set.
    DataError
        If it is missing or cannot be read.
    """
    kind, separator, path = spec.partition(":")
    if not separator or kind not in TEXT_READERS:
        raise ConfigError(
            "mdc-flower does not tokenize the texts of this data set",
            where="data",
            got=spec,
            expected=" or ".join(_form(kind) for kind in TEXT_READERS),
            hint="A data set given as module:function uses its own tokenizer",
        )
    return TEXT_READERS[kind](_under(data_root, kind, path), reading)


def data_folder(spec: str, data_root: str = "") -> str:
    """Return the folder of a data set's files; empty if its name does not give a folder."""
    kind, _, path = spec.partition(":")
    path = _under(data_root, kind, path)
    if kind == "audio-manifest":  # the recordings are next to it or below
        return str(Path(path).parent)
    return path if kind in READERS and Path(path).is_absolute() else ""


def _under(data_root: str, kind: str, path: str) -> str:
    """Return the path of a data set; relative paths are relative to ``data_root``."""
    return path if kind == HUB or not data_root else str(Path(data_root, path))


def makes_vocabulary(spec: str, dataset: DataSet, reading: Reading) -> bool:
    """Return whether the data set's vocabulary was made from its own texts."""
    is_read_here = spec.partition(":")[0] in READERS
    return is_read_here and bool(dataset.vocabulary) and not reading.text.vocabulary


def no_vocabulary(where: str) -> ConfigError:
    """Return the error for a real site that would make its own vocabulary."""
    return ConfigError(
        "this site has no vocabulary file, and a vocabulary of its own texts would differ from the "
        "other sites'",
        where=where,
        expected="the absolute path of the vocabulary file that all sites share",
        hint="Ask the coordinator for the file; `mdc coordinator merge-counts` makes it",
    )


def _load(spec: str, data_root: str, reading: Reading) -> DataSet:
    if spec in BUILTIN:
        return BUILTIN[spec](data_root)
    kind, _, path = spec.partition(":")
    if kind in READERS and ":" in spec:
        return READERS[kind](_under(data_root, kind, path), reading)
    if ":" in spec:
        function = load_reference(spec, "dataset")
        with relative_paths_explained(spec, "dataset"):
            dataset = function()
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
        expected="one of: "
        + ", ".join([*BUILTIN, *(_form(kind) for kind in READERS), "module:function"]),
        hint=f"Did you mean {near[0]!r}?" if near else "",
    )


def _form(kind: str) -> str:
    return f"{kind}:NAME" if kind == HUB else f"{kind}:/abs/path"
