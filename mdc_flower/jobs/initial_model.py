"""The weights that a run starts from, if they come from a file: the key ``initial-model``.

Only the coordinator, and experiments on one machine, read the file. Sites get its arrays as the
first global model, so what is not exchanged must be what every site builds anyway.
"""

import difflib
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mdc_flower.config import RunConfig
from mdc_flower.models.exchange import digest_of, digests_of, exchanged_names
from mdc_flower.models.tensors import first_names, tensors_of, trainable_names
from mdc_flower.training.arrays import load_arrays
from strategies.common.errors import ConfigError, ModelError, RunError
from strategies.exchange.gate import ArraySpec
from strategies.storage.model_files import StoredArrays

KEY = "initial-model"

NOTED = ("class-names", "mean", "std", "vocabulary")
"""Metadata of which a run is told if its own differ: the weights were trained with others."""


def initialized(model: nn.Module, config: RunConfig) -> nn.Module:
    """Return a new model with the weights that the run starts from.

    These are its own, or, with ``initial-model``, those of the file.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    ModelError
        If an exchanged array is missing or does not match the model, if the file has an array that
        the model does not have, or one that is not exchanged and differs from the model's.
    """
    if config.initial_model:
        names = exchanged_names(model, config.exchange, config.keep)
        load_arrays(model, _fitting(model, _read(config), names, config.initial_model), names)
    return model


def file_digest(config: RunConfig) -> str:
    """Return the SHA-256, in hex, of the run's initial model; empty without one.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    if not config.initial_model:
        return ""
    try:
        with Path(config.initial_model).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"the file cannot be read: {error.strerror}", where=KEY, got=config.initial_model
        ) from None


def check_file_unchanged(before: str, config: RunConfig) -> None:
    """Check that the file is still the one with which the run began.

    A resumed run has its model in its checkpoint, so the file may have been removed.

    Parameters
    ----------
    before
        The digest when the run began.

    Raises
    ------
    ConfigError
        If the file has another digest.
    """
    if before and Path(config.initial_model).exists() and (now := file_digest(config)) != before:
        raise ConfigError(
            "the file has changed since the run began",
            where=f"{KEY}, {config.initial_model}",
            got=f"SHA-256 {now[:16]}",
            expected=f"SHA-256 {before[:16]}",
            hint="Restore it, or start a new run",
        )


def differences(config: RunConfig, own: Mapping[str, Any]) -> list[str]:
    """Return the `NOTED` metadata in which the file's model and the run's differ.

    Files of other programs have no metadata, and nothing differs.

    Parameters
    ----------
    own
        The metadata of the run's models.
    """
    try:
        about = StoredArrays(Path(config.initial_model)).metadata
    except RunError:
        return []
    return [key for key in NOTED if key in own and about.get(key, own[key]) != own[key]]


def _read(config: RunConfig) -> StoredArrays:
    """Return the arrays of the file."""
    stored = StoredArrays(Path(config.initial_model))
    try:
        len(stored)
    except RunError as error:
        raise ConfigError(
            error.what,
            where=KEY,
            got=config.initial_model,
            expected="a safetensors file of a state dict, or a model file of a run",
            hint="safetensors.torch.save_model(model, FILE) writes one",
        ) from None
    return stored


def _fitting(
    model: nn.Module, stored: StoredArrays, names: Collection[str], file: str
) -> dict[str, NDArray[np.generic]]:
    """Return the file's exchanged arrays under their names in the model, each checked."""
    where, first, tensors = f"{KEY}, {file}", first_names(model), tensors_of(model)
    if strange := [name for name in stored if name not in first]:
        near = difflib.get_close_matches(strange[0], first, n=1)
        raise ModelError(
            f"the model has no array {strange[0]!r}",
            where=where,
            got=f"{len(strange)} such arrays",
            hint=f"The nearest name in the model is {near[0]!r}" if near else "",
        )
    arrays: dict[str, NDArray[np.generic]] = {}
    for name in stored:
        tensor, array = tensors[first[name]], stored[name]
        got = ArraySpec(array.shape, str(array.dtype))
        own = ArraySpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if got != own:
            raise ModelError(
                f"array {name!r} does not match the model",
                where=where,
                got=str(got),
                expected=str(own),
            )
        before = arrays.setdefault(first[name], array)
        if before is not array and digest_of(before) != digest_of(array):
            raise ModelError(
                f"{name!r} and {first[name]!r} are one array in the model, but two in the file",
                where=where,
            )
    if missing := [name for name in names if name not in arrays]:
        raise ModelError(
            f"array {missing[0]!r} is missing", where=where, got=f"{len(missing)} missing arrays"
        )
    _check_not_exchanged(model, [name for name in arrays if name not in names], arrays, where)
    for name in sorted(trainable_names(model) & set(names)):
        if not np.isfinite(arrays[name]).all():
            raise ModelError(f"array {name!r} has values that are not finite", where=where)
    return {name: arrays[name] for name in names}


def _check_not_exchanged(
    model: nn.Module,
    names: Collection[str],
    arrays: Mapping[str, NDArray[np.generic]],
    where: str,
) -> None:
    """Refuse arrays that no site would get, unless every site builds the same ones."""
    for name, built in digests_of(model, names).items():
        if digest_of(arrays[name]) != built:
            raise ModelError(
                f"array {name!r} is not exchanged, so the sites would not get it",
                where=where,
                got="other values than the model is built with",
                hint="Exchange it, leave it out of the file, or build the model with it at every "
                "site",
            )
