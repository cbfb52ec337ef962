"""Convert a model's parameters and buffers to named arrays, and back."""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdc_flower.models.tensors import first_names, tensors_of
from strategies.common.errors import ModelError
from strategies.exchange.gate import ArraySpec


def model_arrays(
    model: nn.Module, names: Iterable[str] | None = None
) -> dict[str, NDArray[np.generic]]:
    """Return copies of a model's parameters and buffers by name.

    Parameters
    ----------
    names
        Names and order of the result; by default those of `tensors_of`: each tensor once, in
        state-dict order. For a model that has been moved to another device, pass the names of a
        new model, because the move turns a buffer that layers share into several.

    Raises
    ------
    ModelError
        If the model has state that is not a tensor.
    """
    tensors = tensors_of(model)
    return {name: copied(tensors[name]) for name in (tensors if names is None else names)}


def array_views(
    model: nn.Module, names: Iterable[str] | None = None
) -> dict[str, NDArray[np.generic]]:
    """Return what `model_arrays` copies: on the CPU, the arrays mostly are the model's memory."""
    tensors = tensors_of(model)
    return {
        name: tensors[name].detach().cpu().contiguous().numpy()
        for name in (tensors if names is None else names)
    }


def copied(tensor: Tensor) -> NDArray[np.generic]:
    """Return a copy of a tensor in the memory of the CPU."""
    array: NDArray[np.generic] = tensor.detach().cpu().contiguous().numpy().copy()
    return array


def load_arrays(
    model: nn.Module,
    arrays: Sequence[NDArray[np.generic]] | Mapping[str, NDArray[np.generic]],
    names: Sequence[str] | None = None,
) -> None:
    """Overwrite a model's parameters and buffers, all of them or some.

    Parameters
    ----------
    arrays
        The result of `model_arrays`, or only its values. Files of earlier versions contain a
        shared tensor under each of its names; the last one counts, as in those versions.
    names
        The arrays to overwrite, as in `tensors_of`; by default all.

    Raises
    ------
    ModelError
        If number, names, shapes or dtypes differ; the model is then unchanged. The error names
        the first mismatch.
    """
    tensors, first = tensors_of(model), first_names(model)
    if names is not None:
        tensors = {name: tensors[name] for name in names}
        first = {name: to for name, to in first.items() if to in tensors}
    named = arrays if isinstance(arrays, Mapping) else _in_order(list(tensors), arrays)
    if set(named) == set(first):
        named = {first[name]: named[name] for name in first}
    if set(named) != set(tensors):
        odd = sorted(set(named) ^ set(tensors))[0]
        side = "is missing" if odd in tensors else "is not in the model"
        raise ModelError(f"array {odd!r} {side}", where="model", got=f"{len(named)} arrays")
    for name, tensor in tensors.items():
        array = named[name]
        got = ArraySpec(array.shape, str(array.dtype))
        own = ArraySpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if got != own:
            raise ModelError(
                "the array does not match the model",
                where=f"array {name!r}",
                got=str(got),
                expected=str(own),
            )
    with warnings.catch_warnings():  # of arrays that are read-only; they are only read
        warnings.simplefilter("ignore", UserWarning)
        loaded = {name: torch.from_numpy(np.ascontiguousarray(named[name])) for name in tensors}
    model.load_state_dict({name: loaded[first[name]] for name in first}, strict=names is None)


def _in_order(
    names: list[str], arrays: Sequence[NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    if len(arrays) != len(names):
        raise ModelError(
            "the number of arrays differs from the model's",
            where="model",
            got=len(arrays),
            expected=f"{len(names)}, from {names[0]!r} to {names[-1]!r}",
        )
    return dict(zip(names, arrays, strict=True))
