"""Make batches from stored examples: shuffled by seed, augmented, normalized, on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdc_flower.data import DataSet, Examples, Part
from mdc_flower.training.augmentation import Moves, draw, moved
from strategies.common.errors import ConfigError


class Inputs(Protocol):
    """Inputs that can be indexed by row numbers or a slice, such as a tensor."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        """Return the inputs of these examples, on the CPU and unchanged."""
        ...


@dataclass(frozen=True)
class StoredInputs:
    """Inputs that stay in their array; only the rows of a batch are copied.

    Attributes
    ----------
    array : ndarray, shape (N, ...)
        May be memory-mapped and read-only, because torch gets only the copy of a batch.
    rows : ndarray of int64 or None
        Rows of the array; None for all.
    """

    array: NDArray[np.generic]
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.array if self.rows is None else self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return the inputs of these examples in writable memory, because torch might write."""
        chosen = index if isinstance(index, slice) else index.numpy()
        batch = self.array[chosen if self.rows is None else self.rows[chosen]]
        return torch.from_numpy(np.require(batch, requirements=["C", "W"]))

    def row_numbers(self, index: Tensor | slice) -> Tensor:
        """Return the numbers of these examples' rows in the array, int64."""
        if self.rows is not None:
            chosen = index if isinstance(index, slice) else index.numpy()
            return torch.from_numpy(self.rows[chosen])
        return torch.arange(len(self))[index] if isinstance(index, slice) else index


@dataclass(frozen=True)
class Tensors:
    """Examples for torch, on the CPU and unchanged; shapes as in `Examples`."""

    inputs: Inputs
    labels: Tensor

    @classmethod
    def of(cls, examples: Examples | Part) -> "Tensors":
        """Return examples for torch; inputs are not copied, and mapped inputs stay mapped."""
        labels = examples.labels if examples.labels.flags.writeable else examples.labels.copy()
        if isinstance(examples, Part):
            inputs = StoredInputs(examples.whole.inputs, examples.rows)
        else:
            inputs = StoredInputs(examples.inputs)
        return cls(inputs, torch.from_numpy(labels))

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)


@dataclass(frozen=True)
class InputPipeline:
    """How stored inputs become model inputs.

    Attributes
    ----------
    mean, std : sequence of float
        Per-channel statistics, in units of inputs scaled to [0, 1]; empty for none.
    augment : str
        For images ``(N, C, H, W)``: ``none``, ``crop`` (shift by up to an eighth of the size,
        zeros outside), ``flip`` (left to right, half of the images) or ``crop-flip``.
    channels_last : bool
        Whether 4-d inputs use channels-last memory layout, with which convolutions are faster
        on CPUs with bf16 and on GPUs.
    """

    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    augment: str = "none"
    channels_last: bool = True

    @classmethod
    def of(
        cls, dataset: DataSet, augment: str = "none", channels_last: bool = True
    ) -> "InputPipeline":
        """Return the pipeline of a data set.

        Raises
        ------
        ConfigError
            If ``augment`` is set for anything but images. A flipped spectrogram, for example,
            would be a reversed recording, and nobody would notice.
        """
        inputs = dataset.train.inputs
        if augment != "none" and not (inputs.dtype == np.uint8 and inputs.ndim == 4):
            raise ConfigError(
                "only images can be augmented",
                where="augment",
                got=f"{augment} for inputs {inputs.dtype}{list(inputs.shape[1:])}",
                expected="none, or inputs uint8 [channels, height, width]",
            )
        return cls(tuple(dataset.mean), tuple(dataset.std), augment, channels_last)

    def __call__(
        self, inputs: Tensor, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a batch for the model, augmented only if a generator is given."""
        moves = self.draw(inputs.shape, generator)
        return self.ready(inputs.to(device), [move.to(device) for move in moves])

    def draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Moves:
        """Draw the augmentation of a batch of this shape; nothing without a generator."""
        if generator is None or self.augment == "none" or len(shape) != 4:
            return ()
        return draw(self.augment, shape, generator)

    def ready(self, inputs: Tensor, moves: Moves = ()) -> Tensor:
        """Return a batch for the model from inputs and their augmentation on its device."""
        if inputs.dtype == torch.int64:
            return inputs
        # Images are moved as bytes: that is a quarter of the size of floats.
        if moves:
            inputs = moved(inputs, self.augment, moves)
        batch = inputs.float()
        if inputs.dtype == torch.uint8:
            batch = batch / 255
        if self.mean:
            mean, std = _statistics(tuple(self.mean), tuple(self.std), batch.ndim, batch.device)
            batch = (batch - mean) / std
        if self.channels_last and batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        return batch


@lru_cache(maxsize=8)
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], ndim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return a pipeline's statistics, shaped for its batches; made once for each device."""
    shape = (1, -1) + (1,) * (ndim - 2)
    return tuple(torch.tensor(v, device=device).view(shape) for v in (mean, std))  # type: ignore[return-value]


def shuffled(num_examples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the row numbers of each batch of one epoch, in a new order.

    A last batch of one example is left out if there are other batches, because BatchNorm cannot
    train on it.
    """
    order = torch.randperm(num_examples, generator=generator)
    steps = steps_per_epoch(num_examples, batch_size)
    yield from torch.split(order, batch_size)[:steps]


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Return the number of batches that `shuffled` yields."""
    full, rest = divmod(num_examples, batch_size)
    return full + (rest > 1 or rest == num_examples)
