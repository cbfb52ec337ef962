"""Bring examples to the device without letting it wait.

A GPU keeps all stored inputs in its memory if they fit; a batch then needs only its row numbers.
Otherwise the rows of a batch are copied while the GPU computes the batch before. Neither changes a
bit. On a CPU, inputs stay in their array.
"""

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdc_flower.training.batches import Inputs, StoredInputs

RESIDENT_SHARE = 1 / 8
"""Share of a GPU's free memory that the inputs of a data set may fill; the rest is for training."""

CHUNK_BYTES = 64 * 2**20
"""Bytes copied at a time, so that memory-mapped inputs need little memory of the CPU."""

About = TypeVar("About")


class Source(Protocol):
    """Where the inputs of a batch come from."""

    def sent(self, index: Tensor | slice) -> Tensor:
        """Return what must be sent to the device for these examples; it is on the CPU."""
        ...

    def inputs(self, arrived: Tensor) -> Tensor:
        """Return the examples on the device, from what has arrived there."""
        ...


@dataclass(frozen=True)
class FromHost:
    """Sends the inputs themselves."""

    stored: Inputs

    def sent(self, index: Tensor | slice) -> Tensor:
        """Return the inputs of these examples."""
        return self.stored[index]

    def inputs(self, arrived: Tensor) -> Tensor:
        """Return what arrived."""
        return arrived


@dataclass(frozen=True)
class Resident:
    """Sends row numbers; all inputs are on the device.

    Attributes
    ----------
    stored : StoredInputs
        The inputs.
    tensor : Tensor
        The whole array of the inputs, on the device.
    """

    stored: StoredInputs
    tensor: Tensor

    def sent(self, index: Tensor | slice) -> Tensor:
        """Return the numbers of these examples' rows in the array."""
        return self.stored.row_numbers(index)

    def inputs(self, arrived: Tensor) -> Tensor:
        """Return copies of these rows."""
        return self.tensor[arrived]


def source_of(inputs: Inputs, device: torch.device) -> Source:
    """Return the source of inputs for a device: its own memory if they fit into a share of it.

    Arrays are copied once per process. The copy is freed with the array.
    """
    if not isinstance(inputs, StoredInputs):
        return FromHost(inputs)
    key = id(inputs.array), device
    if key not in _resident and inputs.array.nbytes <= RESIDENT_SHARE * free_bytes(device):
        _resident[key] = _copied(inputs.array, device)
        weakref.finalize(inputs.array, _resident.pop, key, None)
    return Resident(inputs, _resident[key]) if key in _resident else FromHost(inputs)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU; 0 for a CPU, which has the inputs in its memory anyway."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


_resident: dict[tuple[int, torch.device], Tensor] = {}
"""Copies of arrays, by the array's identity and the device."""


def _copied(array: NDArray[np.generic], device: torch.device) -> Tensor:
    stored = StoredInputs(array)
    dtype = stored[0:0].dtype
    tensor = torch.empty(array.shape, dtype=dtype, device=device)
    rows = max(1, CHUNK_BYTES // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), rows):
        tensor[start : start + rows] = stored[start : start + rows].to(device)
    return tensor


def arriving(
    batches: Iterable[tuple[About, tuple[Tensor, ...]]], device: torch.device
) -> Iterator[tuple[About, tuple[Tensor, ...]]]:
    """Yield batches with their tensors on the device.

    For a GPU, each batch is copied from pinned memory while the GPU computes the one before, so
    ``batches`` are drawn one ahead.
    """
    if device.type != "cuda":
        for about, tensors in batches:
            yield about, tuple(tensor.to(device) for tensor in tensors)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: list[tuple[About, tuple[Tensor, ...], torch.cuda.Event]] = []
    for about, tensors in batches:
        with torch.cuda.stream(stream):
            copies = tuple(t.pin_memory().to(device, non_blocking=True) for t in tensors)
            ahead.append((about, copies, stream.record_event()))
        if len(ahead) > 1:
            yield _arrived(*ahead.pop(0))
    yield from (_arrived(*last) for last in ahead)


def _arrived(
    about: About, copies: tuple[Tensor, ...], event: torch.cuda.Event
) -> tuple[About, tuple[Tensor, ...]]:
    """Let the GPU's next work wait for the copies; the CPU does not wait."""
    computing = torch.cuda.current_stream(copies[0].device)
    computing.wait_event(event)
    for copy in copies:
        copy.record_stream(computing)  # so that their memory is not used again too early
    return about, copies
