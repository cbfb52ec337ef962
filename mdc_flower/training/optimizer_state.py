"""The state of an optimizer as arrays and plain values, for any number of processes."""

from typing import Any

import torch
from torch import Tensor

from mdc_flower.training.runtime import ONE, Runtime, Saved

OPTIMIZER, GROUP = "optimizer.", "group."


def optimizer_state(optimizer: torch.optim.Optimizer, runtime: Runtime = ONE) -> Saved:
    """Return copies of an optimizer's state: its tensors, and its other values, by name.

    Several processes (``runtime``) all call this function; only the first one gets the tensors.
    """
    parameters = _parameters(optimizer)
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            name = f"{OPTIMIZER}{index}.{key}"
            if isinstance(value, Tensor):
                tensors[name] = runtime.as_part(value, parameters[index])
            else:
                others[name] = value
    for index, group in enumerate(optimizer.param_groups):
        counts = {key: value for key, value in group.items() if type(value) in (int, float)}
        # The plan sets the rate. Others may change too, such as the steps of a warm-up.
        others |= {f"{GROUP}{index}.{key}": counts[key] for key in sorted(counts) if key != "lr"}
    return runtime.copies(tensors), others


def restore_optimizer(
    optimizer: torch.optim.Optimizer, saved: Saved, runtime: Runtime = ONE
) -> None:
    """Restore an optimizer's state, as returned by `optimizer_state`; other arrays are ignored.

    Several processes all call this function with a state that was handed out.
    """
    arrays, others = saved
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Any]] = {}
    for name, value in others.items():
        if name.startswith(GROUP):
            index, key = name.removeprefix(GROUP).split(".", 1)
            optimizer.param_groups[int(index)][key] = value
        else:
            index, key = name.removeprefix(OPTIMIZER).split(".", 1)
            state.setdefault(int(index), {})[key] = value
    for name in arrays:
        if name.startswith(OPTIMIZER):
            index, key = name.removeprefix(OPTIMIZER).split(".", 1)
            whole = torch.from_numpy(arrays[name])
            part = _part(whole, parameters[int(index)], runtime)
            state.setdefault(int(index), {})[key] = part
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _part(whole: Tensor, parameter: Tensor, runtime: Runtime) -> Tensor:
    """Return what this process's optimizer keeps of a tensor."""
    # The fused optimizers need the memory layout of the parameter.
    own = torch.empty_like(parameter, dtype=whole.dtype, requires_grad=False)
    part = runtime.as_part(own, parameter)
    if part.shape != whole.shape:
        return whole
    runtime.overwrite(part, whole)
    return own
