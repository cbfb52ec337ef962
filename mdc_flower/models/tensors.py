"""The tensors that make up a model: each one once, under one name.

A state dict lists a tensor that two layers share (tied weights) under the name of each. Averaged as
two arrays, it would become two values, and the one that is loaded last would win.
"""

from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from strategies.common.errors import ModelError


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return each parameter and buffer of the state dict once, in its order.

    A tensor with several names has the first of them.

    Raises
    ------
    ModelError
        If the state dict holds what is not a tensor.
    """
    state = _state_of(model)
    return {name: state[name] for name, first in _first(state).items() if name == first}


def first_names(model: nn.Module) -> dict[str, str]:
    """Return every name in the state dict, with the one under which `tensors_of` has its tensor.

    Raises
    ------
    ModelError
        If the state dict holds what is not a tensor.
    """
    return _first(_state_of(model))


def trainable_names(model: nn.Module) -> frozenset[str]:
    """Return the names in `tensors_of` of the parameters that an optimizer moves."""
    return frozenset(
        name
        for name, tensor in tensors_of(model).items()
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad
    )


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    # With keep_vars the tensors are the model's own; without, each name has a view of its own.
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
