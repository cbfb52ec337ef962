"""The state of local training between two epochs, as arrays and plain values."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdc_flower.models.tensors import tensors_of
from strategies.aggregation.averaging import Arrays

MODEL, OPTIMIZER, GROUP = "model.", "optimizer.", "group."
BATCHES, TORCH, CUDA, NUMPY = "batches", "torch", "cuda", "numpy"
LOSS_SUM, SUMS = "loss-sum", "sums."


@dataclass
class LoopState:
    """Everything that training changes. Restored, training continues with the same bits.

    Attributes
    ----------
    model : nn.Module
        On its device.
    optimizer : torch.optim.Optimizer
        Its learning rate is not part of the state; the plan sets it before each step.
    scaler : torch.amp.GradScaler
        Scales losses in float16.
    batches : torch.Generator
        Draws the order of the examples and the augmentation.
    loss_sum : Tensor
        Sum of the loss over the examples seen, on the device.
    sums : dict
        Sums of the metrics, in the same way.
    num_seen, step, epoch : int
        Examples seen, optimizer steps and epochs finished.
    seconds : float
        Time spent before this process continued the training.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    batches: torch.Generator
    loss_sum: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)
    num_seen: int = 0
    step: int = 0
    epoch: int = 0
    seconds: float = 0.0

    def saved(self) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
        """Return copies of the state, with that of the global random generators."""
        of_numpy: Any = np.random.get_state()
        tensors = {MODEL + name: tensor for name, tensor in tensors_of(self.model).items()}
        of_optimizer, numbers = optimizer_state(self.optimizer)
        tensors |= {
            BATCHES: self.batches.get_state(),
            TORCH: torch.get_rng_state(),
            LOSS_SUM: self.loss_sum,
        }
        tensors |= {SUMS + name: values for name, values in self.sums.items()}
        if self.loss_sum.is_cuda:
            tensors[CUDA] = torch.cuda.get_rng_state(self.loss_sum.device)
        arrays = _copies(tensors) | of_optimizer
        about = {
            "step": self.step,
            "epoch": self.epoch,
            "num-seen": self.num_seen,
            "seconds": self.seconds,
            "optimizer": numbers,
            "scaler": self.scaler.state_dict(),
            "numpy": [of_numpy[0], *of_numpy[2:]],
            "python": random.getstate(),
        }
        return {**arrays, NUMPY: of_numpy[1]}, about

    def restore(self, arrays: Arrays, about: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        with torch.no_grad():
            for name, tensor in tensors_of(self.model).items():
                tensor.copy_(torch.from_numpy(arrays[MODEL + name]))
        restore_optimizer(self.optimizer, arrays, about["optimizer"])
        self.scaler.load_state_dict(about["scaler"])
        self.batches.set_state(torch.from_numpy(arrays[BATCHES]))
        self.loss_sum.copy_(torch.from_numpy(arrays[LOSS_SUM]))
        self.sums = {
            name.removeprefix(SUMS): torch.from_numpy(arrays[name]).to(self.loss_sum.device)
            for name in arrays
            if name.startswith(SUMS)
        }
        self.step, self.epoch = about["step"], about["epoch"]
        self.num_seen, self.seconds = about["num-seen"], about["seconds"]
        torch.set_rng_state(torch.from_numpy(arrays[TORCH]))
        if CUDA in arrays:
            torch.cuda.set_rng_state(torch.from_numpy(arrays[CUDA]), self.loss_sum.device)
        kind, *rest = about["numpy"]
        np.random.set_state((kind, arrays[NUMPY], *rest))
        version, internal, gauss = about["python"]
        random.setstate((version, tuple(internal), gauss))


def optimizer_state(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    """Return copies of an optimizer's state: its tensors, and its other values, by name."""
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            kept = tensors if isinstance(value, Tensor) else others
            kept[f"{OPTIMIZER}{index}.{key}"] = value
    for index, group in enumerate(optimizer.param_groups):
        counts = {key: value for key, value in group.items() if type(value) in (int, float)}
        # The plan sets the rate. Others may change too, such as the steps of a warm-up.
        others |= {f"{GROUP}{index}.{key}": counts[key] for key in sorted(counts) if key != "lr"}
    return _copies(tensors), others


def restore_optimizer(
    optimizer: torch.optim.Optimizer, arrays: Arrays, others: Mapping[str, Any]
) -> None:
    """Restore an optimizer's state, as returned by `optimizer_state`; other arrays are ignored."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    values = dict(others)
    for name in arrays:
        if name.startswith(OPTIMIZER):
            values[name] = torch.from_numpy(arrays[name])
    for name in [name for name in values if name.startswith(GROUP)]:
        index, key = name.removeprefix(GROUP).split(".", 1)
        optimizer.param_groups[int(index)][key] = values.pop(name)
    for name, value in values.items():
        index, key = name.removeprefix(OPTIMIZER).split(".", 1)
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # The fused optimizers need the memory layout of the parameter.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
    return {name: t.detach().cpu().contiguous().numpy().copy() for name, t in tensors.items()}
