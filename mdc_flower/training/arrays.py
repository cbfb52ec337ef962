"""A model's parameters and buffers as named arrays, and back."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

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
        Which, in the order of the result; by default those of `tensors_of`: each tensor once, in
        state-dict order. Give the names that a new model has where this one has been moved: a
        buffer that layers share becomes several on another device.

    Raises
    ------
    ModelError
        If the model has state that is not a tensor.
    """
    tensors = tensors_of(model)
    return {
        name: tensors[name].detach().cpu().contiguous().numpy().copy()
        for name in (tensors if names is None else names)
    }


def load_arrays(
    model: nn.Module, arrays: Sequence[NDArray[np.generic]] | Mapping[str, NDArray[np.generic]]
) -> None:
    """Overwrite a model's parameters and buffers.

    Parameters
    ----------
    arrays
        As `model_arrays` returns them, or those values alone. Files of earlier versions hold a
        tensor under each of its names; its last one counts, as it did then.

    Raises
    ------
    ModelError
        If number, names, shapes or dtypes differ, naming the first misfit; the model is then
        unchanged.
    """
    tensors, first = tensors_of(model), first_names(model)
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
                "the array does not fit the model",
                where=f"array {name!r}",
                got=str(got),
                expected=str(own),
            )
    loaded = {name: torch.from_numpy(np.array(named[name])) for name in tensors}
    model.load_state_dict({name: loaded[first[name]] for name in first})


def _in_order(
    names: list[str], arrays: Sequence[NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    if len(arrays) != len(names):
        raise ModelError(
            "the number of arrays is not the model's",
            where="model",
            got=len(arrays),
            expected=f"{len(names)}, from {names[0]!r} to {names[-1]!r}",
        )
    return dict(zip(names, arrays, strict=True))
