"""The processes that train one site's model together: usually just this one.

`Runtime` is what the training loop needs of them. This one has no other process and changes
nothing; `mdc_flower.training.ranks.Ranks` is the one for several.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdc_flower.models.exchange import digests_of
from mdc_flower.training.arrays import copied, load_arrays, model_arrays
from strategies.aggregation.averaging import Arrays

Found = TypeVar("Found")

Saved = tuple[Arrays, Mapping[str, Any]]
"""A state of training: arrays, and other values in the form of JSON."""


class Runtime:
    """A single process.

    Attributes
    ----------
    rank, size : int
        This process's number, and the number of processes.
    shard : bool
        Whether each process keeps only its share of the model.
    first_step_decides : bool
        Whether the bits of a step may depend on this process having computed the first one.
    """

    rank = 0
    size = 1
    shard = False
    first_step_decides = False

    @property
    def salt(self) -> Sequence[int]:
        """Return what makes this process's random numbers different from the first process's."""
        return (self.rank,) if self.rank else ()

    def load(
        self,
        model: nn.Module,
        arrays: Sequence[NDArray[Any]],
        names: Sequence[str] | None = None,
    ) -> None:
        """Overwrite a new model with the arrays that the first process has, all or the named ones.

        Raises
        ------
        ModelError
            See `mdc_flower.training.arrays.load_arrays`.
        """
        load_arrays(model, arrays, names)

    def place(self, model: nn.Module, device: torch.device) -> None:
        """Move a loaded model to its device, in place."""
        model.to(device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training, so that all processes get the same gradients."""
        return model

    def adapted(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return an optimizer of a placed model, changed to fit the placing."""
        return optimizer

    def gather(self, model: nn.Module, names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
        """Return copies of a model's arrays at the first process, nothing at the others."""
        return model_arrays(model, names)

    def digests(self, model: nn.Module, names: Sequence[str]) -> dict[str, str]:
        """Return the digests of arrays at the first process, nothing at the others."""
        return digests_of(model, names)

    def first_says(self, *answers: bool) -> tuple[bool, ...]:
        """Return the first process's answers."""
        return answers

    def from_first(self, find: Callable[[], Found]) -> Found:
        """Return what the first process finds, a small object; if it fails, all fail."""
        return find()

    def hand_out(self, find: Callable[[], Saved | None]) -> Saved | None:
        """Return the state that the first process finds, if it does; if it fails, all fail.

        All processes must then read the same arrays, in the same order.
        """
        return find()

    def as_part(self, value: Tensor, parameter: Tensor) -> Tensor:
        """Return an optimizer's value for a parameter, as a part of the whole parameter's.

        Parameters
        ----------
        value
            A tensor of the optimizer's state, in the same memory as the result.
        parameter
            The parameter as the optimizer has it.

        Raises
        ------
        ConfigError
            If it is not clear which part that would be.
        """
        return value

    def copies(self, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
        """Return copies of whole tensors at the first process, nothing at the others."""
        return {name: copied(tensor) for name, tensor in tensors.items()}

    def overwrite(self, tensor: Tensor, whole: Tensor) -> None:
        """Overwrite a tensor, or this process's part of it, with the values of the whole one."""
        tensor.copy_(whole)

    def of_all(self, own: Saved) -> Saved:
        """Return what all processes have of their own at the first process, nothing at others."""
        return own

    def own(self, of_all: Saved) -> Saved:
        """Return what this process has of its own; see `of_all`, among other values."""
        return of_all

    def total_count(self, count: int) -> int:
        """Return the sum of a number over all processes."""
        return count

    def largest(self, count: int) -> int:
        """Return the largest of all processes' numbers."""
        return count

    def weighted(self, loss: Tensor, count: int, whole: int) -> Tensor:
        """Return a part's share of the loss of a whole batch.

        Its gradients, averaged over the processes and added up over micro-batches, are that of the
        whole batch.

        Parameters
        ----------
        loss
            The mean over the part.
        count, whole
            What the means over the part and over the whole batch are over.
        """
        return loss if count == whole else loss * (count / whole)

    def accumulating(self, module: nn.Module, is_last: bool) -> AbstractContextManager[object]:
        """Return the context of forward and backward pass of one of a batch's micro-batches.

        Parameters
        ----------
        module
            The result of `wrap`.
        is_last
            Whether the gradients are complete afterwards, and the processes may average them.
        """
        return nullcontext()

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return values

    def totals(self, sums: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the sums of tensors over all processes."""
        return sums

    def total_loss(self, loss_sum: float, count: int) -> tuple[float, int]:
        """Return the sums of a loss and of its count over all processes."""
        return loss_sum, count


ONE = Runtime()
"""The runtime of a single process."""
