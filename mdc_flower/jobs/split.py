"""The examples of a split, as a data set or a loader of PyTorch's, and the order of a pass."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from mdc_flower.training.batches import shuffled, steps_per_epoch
from strategies.common.errors import ConfigError, DataError

Data = Dataset[Any] | DataLoader[Any]
"""Examples of a split: a map-style or iterable data set, or a loader of one."""


@dataclass(frozen=True)
class Split:
    """The examples of a split, and how to read them."""

    data: Dataset[Any]
    batch_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    sampler: Any = None

    @classmethod
    def of(
        cls, data: Data, name: str, batch_size: int, collate: Callable[[list[Any]], Any] | None
    ) -> "Split":
        """Return a split of a data set or of a loader's data set."""
        if not isinstance(data, DataLoader):
            return cls(data, batch_size, {"collate_fn": collate})
        if data.batch_size is None:
            raise ConfigError(
                "the loader has a batch sampler of its own, or makes no batches",
                where=f"job, {name}",
                expected="a DataLoader with batch_size",
                hint="Give the order by a sampler with the attribute `generator`",
            )
        kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "drop_last")
        options = {key: getattr(data, key) for key in kept}
        own = None
        if not isinstance(data.dataset, IterableDataset) and not _takes_all(data):
            own = data.sampler
            if name == "train" and not hasattr(own, "generator"):
                raise ConfigError(
                    "the loader's sampler draws its order without a generator",
                    where=f"job, {name}",
                    got=type(own).__name__,
                    expected="a sampler with the attribute `generator`",
                    hint="Otherwise a repeated round would train on other batches",
                )
        return cls(data.dataset, data.batch_size, options, own)

    @property
    def is_stream(self) -> bool:
        """Return whether the examples can only be read in their order."""
        return isinstance(self.data, IterableDataset)

    def __len__(self) -> int:
        """Return the number of examples of data that are no stream."""
        return len(self.data if self.sampler is None else self.sampler)  # type: ignore[arg-type]

    def batches(
        self, generator: torch.Generator | None, start: int, for_gpu: bool = False, skip: int = 0
    ) -> Iterator[Any]:
        """Yield batches: in an order drawn from the generator, or in the stored order.

        A stream is in its own order, and ``start`` of its batches were read in earlier rounds. Of
        other data the first ``skip`` batches are left out. Batches for a GPU are in pinned
        memory, so that copying them does not wait for the GPU.

        Raises
        ------
        DataError
            If a stream of training examples ends.
        """
        options = {key: value for key, value in self.options.items() if value is not None}
        options["pin_memory"] = options.get("pin_memory", False) or for_gpu
        if self.is_stream and generator is not None:
            yield from islice(DataLoader(self.data, self.batch_size, **options), start, None)
            raise DataError(
                "the stream of training examples has ended",
                where="job, train",
                hint="It must last for all steps of the run; let it begin anew itself",
            )
        if self.sampler is not None:
            # An evaluation is over the same examples, in the same order, each time.
            drawn = generator or torch.Generator().manual_seed(0)
            if hasattr(self.sampler, "generator"):
                self.sampler.generator = drawn
            loader: DataLoader[Any] = DataLoader(
                self.data, self.batch_size, sampler=self.sampler, generator=drawn, **options
            )
            yield from islice(loader, skip, None)
            return
        if generator is None:
            loader = DataLoader(self.data, self.batch_size, **{**options, "drop_last": False})
        else:
            drop = options.pop("drop_last", False)
            order = [rows.tolist() for rows in shuffled(len(self), self.batch_size, generator)]
            order = order[: len(self) // self.batch_size] if drop else order
            order = order[skip:]  # so that no example is read in vain
            loader = DataLoader(self.data, batch_sampler=order, generator=generator, **options)
        yield from loader

    def steps(self) -> int:
        """Return the number of batches of an epoch."""
        if self.options.get("drop_last"):
            return len(self) // self.batch_size
        if self.sampler is None:
            return steps_per_epoch(len(self), self.batch_size)
        return -(-len(self) // self.batch_size)


def _takes_all(loader: DataLoader[Any]) -> bool:
    """Return whether a loader reads each example once, in any order that the run may choose."""
    sampler = loader.sampler
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return isinstance(sampler, SequentialSampler)
