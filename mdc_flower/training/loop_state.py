"""The state of local training between two epochs, as arrays and plain values."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdc_flower.models.tensors import tensors_of
from mdc_flower.training.arrays import copied
from mdc_flower.training.optimizer_state import optimizer_state, restore_optimizer
from mdc_flower.training.runtime import ONE, Runtime, Saved

MODEL = "model."
BATCHES, TORCH, CUDA, NUMPY = "batches", "torch", "cuda", "numpy"
LOSS_SUM, SUMS = "loss-sum", "sums."

SCALE = "scale"
"""Beside an optimizer's state: the scale of float16 losses, which adapts to the gradients."""


@dataclass
class LoopState:
    """Everything that training changes. Restored, training continues with the same bits.

    Several processes call each method together; only the first one gets or has the whole state.

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
        What the loss was summed over, optimizer steps and epochs finished.
    examples : int
        Examples that this process has computed.
    seconds : float
        Time spent before this process continued the training.
    runtime : Runtime
        The processes that train together.
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
    examples: int = 0
    seconds: float = 0.0
    runtime: Runtime = ONE

    def saved(self) -> Saved:
        """Return copies of the state, with that of the global random generators."""
        parameters = {n: t for n, t in self._tensors().items() if isinstance(t, nn.Parameter)}
        of_optimizer, numbers = optimizer_state(self.optimizer, self.runtime)
        own, about_own = self.runtime.of_all(self._own())
        about = {
            "step": self.step,
            "epoch": self.epoch,
            "num-seen": self.num_seen,
            "seconds": self.seconds,
            "optimizer": numbers,
            "scaler": self.scaler.state_dict(),
        }
        return {**self.runtime.copies(parameters), **of_optimizer, **own}, {**about, **about_own}

    def restore(self, saved: Saved) -> None:
        """Go back to a saved state."""
        arrays, about = saved
        for name, tensor in self._tensors().items():
            if isinstance(tensor, nn.Parameter):
                self._overwrite(tensor, arrays[name])
        restore_optimizer(self.optimizer, (arrays, about["optimizer"]), self.runtime)
        self.scaler.load_state_dict(about["scaler"])
        self.step, self.epoch = about["step"], about["epoch"]
        self.num_seen, self.seconds = about["num-seen"], about["seconds"]
        self._restore_own(self.runtime.own(saved))

    def carried(self) -> Saved:
        """Return copies of what may be carried to the next round: optimizer, scale of losses."""
        arrays, others = optimizer_state(self.optimizer, self.runtime)
        scale = {SCALE: self.scaler.state_dict()} if self.scaler.is_enabled() else {}
        return arrays, {**others, **scale}

    def carry_on(self, carried: Saved) -> None:
        """Begin with what was carried from another round."""
        arrays, about = carried
        others = {name: value for name, value in about.items() if name != SCALE}
        restore_optimizer(self.optimizer, (arrays, others), self.runtime)
        if SCALE in about:
            self.scaler.load_state_dict(about[SCALE])

    def _own(self) -> Saved:
        """Return copies of what may differ between the processes: buffers, generators, sums."""
        of_numpy: Any = np.random.get_state()
        buffers = {n: t for n, t in self._tensors().items() if not isinstance(t, nn.Parameter)}
        tensors = buffers | {
            BATCHES: self.batches.get_state(),
            TORCH: torch.get_rng_state(),
            LOSS_SUM: self.loss_sum,
        }
        tensors |= {SUMS + name: values for name, values in self.sums.items()}
        if self.loss_sum.is_cuda:
            tensors[CUDA] = torch.cuda.get_rng_state(self.loss_sum.device)
        arrays = {name: copied(tensor) for name, tensor in tensors.items()}
        about = {
            "examples": self.examples,
            "numpy": [of_numpy[0], *of_numpy[2:]],
            "python": random.getstate(),
        }
        return {**arrays, NUMPY: of_numpy[1]}, about

    def _restore_own(self, own: Saved) -> None:
        arrays, about = own
        for name, tensor in self._tensors().items():
            if not isinstance(tensor, nn.Parameter):
                tensor.copy_(torch.from_numpy(arrays[name]))
        self.batches.set_state(torch.from_numpy(arrays[BATCHES]))
        self.loss_sum.copy_(torch.from_numpy(arrays[LOSS_SUM]))
        self.sums = {
            name.removeprefix(SUMS): torch.from_numpy(arrays[name]).to(self.loss_sum.device)
            for name in arrays
            if name.startswith(SUMS)
        }
        torch.set_rng_state(torch.from_numpy(arrays[TORCH]))
        if CUDA in arrays:
            torch.cuda.set_rng_state(torch.from_numpy(arrays[CUDA]), self.loss_sum.device)
        self.examples = about["examples"]
        kind, *rest = about["numpy"]
        np.random.set_state((kind, arrays[NUMPY], *rest))
        version, internal, gauss = about["python"]
        random.setstate((version, tuple(internal), gauss))

    def _tensors(self) -> dict[str, Tensor]:
        return {MODEL + name: tensor for name, tensor in tensors_of(self.model).items()}

    @torch.no_grad()
    def _overwrite(self, tensor: Tensor, array: Any) -> None:
        self.runtime.overwrite(tensor, torch.from_numpy(array))
