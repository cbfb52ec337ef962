"""Operations for which the CPU must wait for a GPU, counted on any device."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations for which the CPU must wait for the device."""

    NAMES = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in self.NAMES or (name == "index" and any(map(_selects, args[1]))):
            self.found.update([name])
        return func(*args, **(kwargs or {}))


def _selects(index: Any) -> bool:
    """Return whether an index says of each element whether to take it."""
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
