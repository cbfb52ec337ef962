"""The files from which training begins, and to which it writes: only the first process has them."""

from collections.abc import Callable
from typing import Protocol

import torch

from mdc_flower.training.runtime import Runtime, Saved


class Store(Protocol):
    """Keeps a state of training."""

    def read(self) -> Saved | None:
        """Return the state with which training begins; None to begin anew."""
        ...

    def is_due(self) -> bool:
        """Return whether the state is to be written now."""
        ...

    def write(self, saved: Saved) -> None:
        """Write a state."""
        ...

    def unusable(self, error: Exception) -> Exception:
        """Return the error of training that could not begin with what was read."""
        ...


def load(
    store: Store | None,
    runtime: Runtime,
    restore: Callable[[Saved], None],
    prepare: Callable[[], object] = lambda: None,
) -> bool:
    """Restore a stored state in all processes, and return whether there is one.

    Parameters
    ----------
    store
        The first process's; None if it has none, and at the others.
    runtime
        The processes, which all call this function.
    restore
        Restores the state in one process.
    prepare
        Called first, if there is a state.
    """
    saved = runtime.hand_out(lambda: None if store is None else store.read())
    if saved is None:
        return False
    prepare()
    try:
        restore(saved)
    except Exception as error:  # whatever is in the file, training must not fail for good
        # The file is not to blame if memory is short, or if another process has ended.
        is_broken = runtime.size > 1 and isinstance(error, RuntimeError)
        if store is None or is_broken or isinstance(error, torch.OutOfMemoryError):
            raise
        raise store.unusable(error) from error
    return True


def save(store: Store | None, runtime: Runtime, saved: Callable[[], Saved]) -> None:
    """Write a state, if the first process's store wants it now.

    Parameters
    ----------
    store, runtime
        As for `load`.
    saved
        Returns the state of all processes at the first one, and nothing at the others.
    """

    def write() -> None:
        if store is not None:
            store.write(state)

    (is_due,) = runtime.first_says(store is not None and store.is_due())
    if is_due:
        state = saved()
        runtime.from_first(write)
