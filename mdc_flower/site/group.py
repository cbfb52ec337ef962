"""The group of processes (ranks) that answer for one site.

Rank 0 gets the messages and answers them like a single process. Before it trains, evaluates or
computes statistics, it tells the other ranks to do the same on their share of the examples, and
afterwards all report whether it went well. A rank that cannot go on ends, and the launcher (see
`mdc_flower.site.launcher`) then ends the whole group.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from logging import ERROR
from typing import TYPE_CHECKING, Any

from strategies.common.errors import EngineError
from strategies.common.log import log

if TYPE_CHECKING:  # the worker of a site with its own command does not import PyTorch
    from torch.distributed.distributed_c10d import Store

    from mdc_flower.training.runtime import Runtime

FOREVER = timedelta(days=365)
"""Longest wait of a rank for the next call."""

COLLECTIVE = timedelta(minutes=30)
"""Longest wait for the other ranks in the middle of a call; reading data may take that long."""

AFTER_ERROR = timedelta(seconds=15)
"""Longest wait for the others of a rank that failed: they fail alike, or hang without it."""

END = "end"
"""The call that ends a rank."""


class BrokenGroupError(EngineError):
    """The ranks no longer do the same, so the group must end."""


@dataclass
class Group:
    """The ranks of this process's site.

    Attributes
    ----------
    ranks : Runtime
        What the training loop needs of them.
    store : Store
        Carries calls and reports; it is in the launcher's process.
    on_machine : int
        Number of ranks on this machine.
    number : int
        Calls so far.
    is_broken : bool
        Whether this process must end, because the ranks no longer do the same.
    """

    ranks: "Runtime"
    store: "Store"
    on_machine: int
    number: int = 0
    is_broken: bool = False

    @contextmanager
    def call(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Have the other ranks do what the block does.

        Raises
        ------
        EngineError
            If another rank failed.
        """
        self._begin(about)
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        try:
            self._end(failed)
        except BrokenGroupError:
            self.is_broken = True
            if failed is None:
                raise
        if failed is not None:
            raise failed

    def end(self) -> None:
        """Let the other ranks end."""
        self._begin({"method": END})

    def follow(self, work: Callable[["Runtime", Mapping[str, Any]], None]) -> None:
        """Do what rank 0 says until it says to end; ``work`` does this rank's share of a call."""
        while True:
            self.number += 1
            self.store.wait([self._key("call")], FOREVER)
            about = json.loads(self.store.get(self._key("call")))
            if about["method"] == END:
                return
            failed: Exception | None = None
            try:
                work(self.ranks, about)
            except Exception as error:
                log(ERROR, "rank %d failed", self.ranks.rank, exc_info=error)
                failed = error
            self._report(failed)
            if failed is not None:
                self._hear(0, AFTER_ERROR)

    def _begin(self, about: Mapping[str, Any]) -> None:
        self.number += 1
        self.store.set(self._key("call"), json.dumps(about))

    def _end(self, failed: Exception | None) -> None:
        self._report(failed)
        patience = AFTER_ERROR if failed else COLLECTIVE
        told = [self._hear(rank, patience) for rank in range(1, self.ranks.size)]
        self.store.delete_key(self._key("call"))
        for rank, error in enumerate(told, 1):
            self.store.delete_key(self._key(rank))
            if error and failed is None:
                raise EngineError(f"rank {rank} of this site failed", got=error)

    def _report(self, failed: Exception | None) -> None:
        name = "" if failed is None else type(failed).__name__
        self.store.set(self._key(self.ranks.rank), name)

    def _hear(self, rank: int, patience: timedelta) -> str:
        """Return the name of a rank's error, empty for none."""
        try:
            self.store.wait([self._key(rank)], patience)
            return str(self.store.get(self._key(rank)).decode())
        except RuntimeError:  # torch's DistError: no report in time, or the store is gone
            raise BrokenGroupError(
                f"rank {rank} of this site does not answer the others",
                hint="All of the site's processes are started again",
            ) from None

    def _key(self, what: object) -> str:
        return f"{self.number}/{what}"


_current: list[Group] = []


def current() -> Group | None:
    """Return the group of this process; None if the site has a single process."""
    return _current[0] if _current else None


def set_current(group: Group) -> None:
    """Make a group that of this process."""
    _current[:] = [group]
