"""The gradient of a batch: the weighted mean of the gradients of its micro-batches."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mdc_flower.training.job import Forward, Job, Spare, add_sums
from mdc_flower.training.loop_state import LoopState
from mdc_flower.training.runtime import Runtime


@dataclass(frozen=True)
class Gradients:
    """Computes gradients with a job's loss.

    Attributes
    ----------
    job : Job
        Its forward pass gives the loss.
    module : nn.Module
        The model as `Runtime.wrap` returns it.
    forward : callable
        Calls that module; it may be compiled.
    runtime : Runtime
        The processes that share each batch.
    autocast : callable
        Returns the context of a forward pass.
    penalty : callable or None
        Returns what is added to the loss of a batch, computed from the weights alone.
    """

    job: Job
    module: nn.Module
    forward: Callable[[Any], Any]
    runtime: Runtime
    autocast: Callable[[], AbstractContextManager[object]]
    penalty: Callable[[], Tensor] | None = None

    def compute(self, state: LoopState, pieces: Sequence[Any]) -> None:
        """Leave a batch's scaled gradient in the parameters; add loss and metrics to the state.

        Each micro-batch has the weight of what its loss is a mean over. How much that is in all is
        known only after the last one. The first one gives an estimate, and the sum is then scaled
        by the ratio, which is 1 for micro-batches of one size.
        """
        state.optimizer.zero_grad(set_to_none=True)
        expected = whole = 0
        for number, piece in enumerate(pieces, 1):
            is_last = number == len(pieces)
            with self.runtime.accumulating(self.module, is_last):
                with self.autocast():
                    done = forward_pass(self.job, self.forward, piece)
                count = self.runtime.total_count(done.count)
                whole += count
                expected = expected or count * len(pieces) or 1
                loss = self.runtime.weighted(done.loss, done.count, expected)
                if is_last and self.penalty is not None:
                    ratio = expected / whole if whole else 1.0
                    loss = loss + self.penalty() / ratio
                state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            state.loss_sum += done.loss.detach().double() * done.count
            add_sums(state.sums, done.sums)
            state.examples += done.examples or done.count
        state.num_seen += whole
        if whole not in (0, expected):
            _scale(state.model, expected / whole)


def forward_pass(job: Job, model: Callable[[Any], Any], batch: Any) -> Forward:
    """Return the job's forward pass; a spare batch counts for nothing."""
    if not isinstance(batch, Spare):
        return job.forward(model, batch)
    done = job.forward(model, batch.batch)
    nothing = {name: torch.zeros_like(values) for name, values in done.sums.items()}
    return Forward(done.loss, 0, nothing, None if done.loss_sum is None else 0 * done.loss_sum)


def _scale(model: nn.Module, factor: float) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
