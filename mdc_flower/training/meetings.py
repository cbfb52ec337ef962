"""What the processes of a site tell each other, by torch's process group.

Only such processes import this module.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mdc_flower.training.runtime import Found, Runtime, Saved
from strategies.aggregation.averaging import Arrays
from strategies.common.errors import EngineError
from strategies.common.fault_points import reach

RANK = "rank-"
"""Start of the names of what each process has of its own in a saved state."""


class Meetings(Runtime):
    """The processes of torch's default group, without the model.

    Every method is a meeting of all processes: each must call it, in the same order.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def first_says(self, *answers: bool) -> tuple[bool, ...]:
        """Return the first process's answers."""
        said = torch.tensor(answers)
        dist.broadcast(said, 0)
        return tuple(said.tolist())

    def from_first(self, find: Callable[[], Found]) -> Found:
        """Return what the first process finds, a small object; if it fails, all fail."""
        found: Any = None
        failed: Exception | None = None
        if self.rank == 0:
            try:
                found = find()
            except Exception as error:
                failed = error
        told = [found, failed and type(failed).__name__]
        dist.broadcast_object_list(told, 0)
        if failed is not None:
            raise failed
        if told[1]:
            raise EngineError("the first rank of this site failed", got=told[1])
        return cast("Found", told[0])

    def hand_out(self, find: Callable[[], Saved | None]) -> Saved | None:
        """Return the state that the first process finds, if it does; if it fails, all fail."""
        arrays: Arrays = {}

        def found() -> tuple[list[str], Mapping[str, Any]] | None:
            nonlocal arrays
            if (saved := find()) is None:
                return None
            arrays, about = saved
            return list(arrays), about

        if (told := self.from_first(found)) is None:
            return None
        names, about = told
        return _HandedOut(self, names, arrays), about

    def of_all(self, own: Saved) -> Saved:
        """Return what all processes have of their own at the first process, nothing at others."""
        reach("rank-saves", rank=self.rank)
        found: list[Any] | None = None if self.rank else [None] * self.size
        dist.gather_object(own, found)
        reach("rank-saved", rank=self.rank)
        arrays = {
            f"{RANK}{rank}.{name}": array
            for rank, (of_rank, _) in enumerate(found or [])
            for name, array in of_rank.items()
        }
        return arrays, {f"{RANK}{rank}": about for rank, (_, about) in enumerate(found or [])}

    def own(self, of_all: Saved) -> Saved:
        """Return what this process has of its own; see `of_all`, among other values."""
        arrays, about = of_all
        start = f"{RANK}{self.rank}."
        own: dict[str, NDArray[np.generic]] = {}
        for name in arrays:
            if name.startswith(RANK):
                array = arrays[name]  # all processes read all arrays, one at a time
                if name.startswith(start):
                    own[name.removeprefix(start)] = array
        return own, about[f"{RANK}{self.rank}"]

    def largest(self, count: int) -> int:
        """Return the largest of all processes' numbers."""
        counts = torch.tensor(count)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return int(counts)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        values = values.clone()
        dist.all_reduce(values)
        return values

    def totals(self, sums: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the sums of tensors over all processes."""
        return {name: self.total(sums[name]) for name in sorted(sums)}

    def total_loss(self, loss_sum: float, count: int) -> tuple[float, int]:
        """Return the sums of a loss and of its count over all processes."""
        loss, whole = self.total(torch.tensor([loss_sum, count], dtype=torch.float64)).tolist()
        return loss, int(whole)


class _HandedOut(Mapping[str, NDArray[np.generic]]):
    """Arrays that only the first process has; reading one is a meeting of all processes."""

    def __init__(self, meetings: Meetings, names: list[str], arrays: Arrays) -> None:
        self._meetings, self._names, self._arrays = meetings, names, arrays

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        array: NDArray[Any] = np.empty(0)

        def layout() -> tuple[tuple[int, ...], np.dtype[Any]]:
            nonlocal array
            array = np.array(self._arrays[name], order="C")
            return array.shape, array.dtype

        shape, dtype = self._meetings.from_first(layout)
        if self._meetings.rank:
            array = np.empty(shape, dtype)
        dist.broadcast(torch.from_numpy(array.reshape(-1).view(np.uint8)), 0)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
