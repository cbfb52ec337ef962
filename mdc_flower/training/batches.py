"""Make batches from stored examples: shuffled by seed, augmented, normalized, on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdc_flower.data import DataSet, Examples, Part
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
        self,
        inputs: Tensor,
        device: torch.device,
        generator: torch.Generator | None = None,
        whole: int | None = None,
        part: slice = slice(None),
    ) -> Tensor:
        """Return a batch for the model, augmented only if a generator is given.

        If the inputs are only ``part`` of a batch of ``whole`` examples, the generator draws for
        all of them. So the augmentation does not depend on how a batch is shared.
        """
        if inputs.dtype == torch.int64:
            return inputs.to(device)
        # Augmentation runs on uint8 data on the CPU: that is a quarter of the size of floats, and
        # a seed has the same effect for every device.
        if generator is not None:
            count = len(inputs) if whole is None else whole
            inputs = _augment(inputs, self.augment, generator, count, part)
        batch = inputs.to(device).float()
        if inputs.dtype == torch.uint8:
            batch = batch / 255
        if self.mean:
            shape = (1, -1) + (1,) * (batch.ndim - 2)
            mean = torch.tensor(self.mean, device=device).view(shape)
            std = torch.tensor(self.std, device=device).view(shape)
            batch = (batch - mean) / std
        if self.channels_last and batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        return batch


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


def _augment(
    images: Tensor, kind: str, generator: torch.Generator, whole: int, part: slice
) -> Tensor:
    if kind == "none":
        return images
    if "flip" in kind:
        flip = torch.rand(whole, generator=generator)[part] < 0.5
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
    return _random_shift(images, generator, whole, part) if "crop" in kind else images


def _random_shift(images: Tensor, generator: torch.Generator, whole: int, part: slice) -> Tensor:
    """Return each image shifted by up to an eighth of its size, with zeros outside."""
    count, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = torch.nn.functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top = torch.randint(0, 2 * pad_y + 1, (whole, 1, 1), generator=generator)[part]
    left = torch.randint(0, 2 * pad_x + 1, (whole, 1, 1), generator=generator)[part]
    rows = top + torch.arange(height).view(1, -1, 1)
    columns = left + torch.arange(width).view(1, 1, -1)
    image = torch.arange(count).view(-1, 1, 1)
    # Indexing around the channel axis moves it last: (N, H, W, C).
    return padded[image, :, rows, columns].permute(0, 3, 1, 2)
