"""The tensors of a model: each tensor once, under one name.

A state dict lists a tensor that two layers share (tied weights) under two names. Averaged as two
arrays, it would get two different values, and the array loaded last would win.
"""

from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from strategies.common.errors import ModelError


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return each parameter and buffer once, in the order of the state dict.

    A tensor with several names gets the first one.

    Raises
    ------
    ModelError
        If the state dict contains anything but tensors.
    """
    state = _state_of(model)
    return {name: state[name] for name, first in _first(state).items() if name == first}


def first_names(model: nn.Module) -> dict[str, str]:
    """Map every name in the state dict to the name of its tensor in `tensors_of`.

    Raises
    ------
    ModelError
        If the state dict contains anything but tensors.
    """
    return _first(_state_of(model))


def trainable_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the trainable parameters, as in `tensors_of`."""
    return frozenset(
        name
        for name, tensor in tensors_of(model).items()
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad
    )


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    # keep_vars returns the model's own tensors; otherwise each name has a separate view.
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if name.endswith(_EXTRA_STATE_KEY_SUFFIX) or not isinstance(value, Tensor):
            raise ModelError(
                "the model has state that is not a parameter or a buffer",
                where="model",
                got=f"{name!r}, {type(value).__name__}",
                hint="Only parameters and buffers are averaged and stored: register such state as "
                "a buffer, or remove get_extra_state",
            )
    return state


def _first(state: dict[str, Tensor]) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}
