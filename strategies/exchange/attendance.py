"""Whom an exchange waits for before it begins: sites that have gone, for a bounded time."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import WARNING

from flwr.serverapp import Grid

from strategies.common.log import log
from strategies.exchange.membership import HELLO_DEADLINE_S, Membership, refresh
from strategies.exchange.waiting import wait_until_online


@dataclass(frozen=True)
class Awaited:
    """Whom an exchange waits for.

    Attributes
    ----------
    missing : list of str
        The sites, in site order.
    num_here : int
        Sites that are online, or whose answers are here.
    quorum : int
        How many are needed.
    left_s : float
        How much longer they are waited for, in seconds.
    """

    missing: list[str]
    num_here: int
    quorum: int
    left_s: float

    def __str__(self) -> str:
        """Return the same in a line for people."""
        left = f"{self.left_s:.0f} s" if self.left_s < 7200 else f"{self.left_s / 3600:.1f} h"
        text = f"waiting up to {left} for {', '.join(self.missing) or 'more sites'}"
        if self.num_here >= self.quorum:
            return text
        return f"{text}: only {self.num_here} of the {self.quorum} sites that are needed are here"


Tell = Callable[[Awaited], None]


@dataclass(frozen=True)
class Attendance:
    """Who is there, and who has been waited for in vain.

    Attributes
    ----------
    membership : Membership
        The sites that are online.
    absent : frozenset of str
        Sites that did not come back in time, or failed and went; they are not waited for again,
        and take part again as soon as they are there.
    lacking_s : float
        How long the quorum has been waited for in vain, in seconds.
    """

    membership: Membership
    absent: frozenset[str] = frozenset()
    lacking_s: float = 0.0

    def waited(
        self,
        grid: Grid,
        kept: Iterable[str],
        min_sites: int,
        wait_s: float,
        patience_s: float = 0.0,
        tell: Tell = lambda awaited: None,
    ) -> "Attendance":
        """Wait for sites that have gone: once for each, and for any while the quorum lacks.

        Parameters
        ----------
        grid
            Asked who is online.
        kept
            Sites whose answers are here already.
        min_sites
            Answers that are needed.
        wait_s
            Longest wait, in seconds.
        patience_s
            Longest wait for the quorum, in seconds, where it is longer than ``wait_s``; all waits
            until the quorum is there count together.
        tell
            Told whom is waited for: at first, when a site comes, and now and then.
        """
        here = set(kept)

        def on_wait(membership: Membership, left_s: float) -> None:
            missing = sorted(set(membership.missing) - here)
            number = len(here | set(membership.nodes))
            awaited = Awaited(missing, number, min_sites, left_s)
            log(WARNING, "%s", awaited)
            tell(awaited)

        membership = refresh(self.membership, grid, min(HELLO_DEADLINE_S, wait_s))
        expected = set(membership.missing) - self.absent - here
        if expected:
            membership = wait_until_online(
                membership, grid, lambda on: expected <= set(on), wait_s, on_wait
            )
        lacking_s, started = 0.0, time.monotonic()
        if len(here | set(membership.nodes)) < min_sites:
            membership = wait_until_online(
                membership,
                grid,
                lambda on: len(here | set(on)) >= min_sites,
                max(wait_s, patience_s - self.lacking_s),
                on_wait,
            )
            if len(here | set(membership.nodes)) < min_sites:
                lacking_s = self.lacking_s + time.monotonic() - started
        absent = (self.absent | expected) & frozenset(membership.missing)
        return Attendance(membership, absent, lacking_s)
