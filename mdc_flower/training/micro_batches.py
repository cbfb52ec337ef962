"""Divide a batch into micro-batches, whose gradients are added up before the optimizer step."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from mdc_flower.training.job import Spare
from mdc_flower.training.runtime import Runtime
from strategies.common.errors import ConfigError


def micro_batches(batch: Any, size: int, runtime: Runtime) -> list[Any]:
    """Return the micro-batches of this process's part of a batch, as many in all processes.

    A process that has fewer than others repeats its last one, which then does not count: FSDP2
    needs all processes for each forward pass.

    Parameters
    ----------
    batch
        A job's batch, or a `Spare`.
    size
        Largest number of examples of a micro-batch; 0 for the whole batch. It may be one more, so
        that no example is alone, because BatchNorm cannot train on one example.
    runtime
        The processes that share the batch.

    Raises
    ------
    ConfigError
        If the batch cannot be divided.
    """
    if not size:
        return [batch]
    if isinstance(batch, Spare):
        own = [batch]
    else:
        own = [rows_of(batch, rows) for rows in slices(length_of(batch), size)]
    last = own[-1] if isinstance(own[-1], Spare) else Spare(own[-1])
    return own + [last] * (runtime.largest(len(own)) - len(own))


def slices(count: int, size: int) -> Iterator[slice]:
    """Yield the rows of each micro-batch of ``count`` examples; their sizes differ by at most 1."""
    pieces = -(-count // size)
    if size > 1:
        pieces = max(1, min(pieces, count // 2))
    for number in range(pieces):
        yield slice(count * number // pieces, count * (number + 1) // pieces)


def length_of(batch: Any) -> int:
    """Return the number of examples of a batch: the length of its first tensor, or list of texts.

    Raises
    ------
    ConfigError
        If the batch has neither.
    """
    if isinstance(batch, Tensor) and batch.ndim:
        return len(batch)
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple) and batch:
        return len(batch) if isinstance(batch[0], str) else length_of(batch[0])
    raise ConfigError(
        "a batch cannot be divided, neither among processes nor into micro-batches",
        where="job, batches",
        got=type(batch).__name__,
        expected="tensors whose first axis is the examples, in tuples, lists or mappings",
        hint="Set ranks = 1 at the site, and micro-batch-size = 0",
    )


def rows_of(batch: Any, rows: slice) -> Any:
    """Return some examples of a batch; tuples, lists and mappings keep their form."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {key: rows_of(value, rows) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(rows_of(value, rows) for value in batch))
    if isinstance(batch, list | tuple):
        is_texts = bool(batch) and isinstance(batch[0], str)
        return batch[rows] if is_texts else type(batch)(rows_of(value, rows) for value in batch)
    return batch
