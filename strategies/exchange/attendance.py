"""Waits, for a limited time, for sites that went offline, before an exchange begins."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import WARNING

from flwr.serverapp import Grid

from strategies.common.log import log
from strategies.exchange.membership import NEWCOMER_S, Membership, refresh
from strategies.exchange.waiting import wait_until_online


@dataclass(frozen=True)
class Awaited:
    """The sites an exchange waits for.

    Attributes
    ----------
    missing : list of str
        Names of the sites, in site order.
    num_here : int
        Number of sites that are online or whose replies are stored.
    quorum : int
        Number of sites required.
    left_s : float
        Remaining waiting time, in seconds.
    """

    missing: list[str]
    num_here: int
    quorum: int
    left_s: float

    def __str__(self) -> str:
        """Return a one-line message for the console."""
        left = f"{self.left_s:.0f} s" if self.left_s < 7200 else f"{self.left_s / 3600:.1f} h"
        text = f"waiting up to {left} for {', '.join(self.missing) or 'more sites'}"
        if self.num_here >= self.quorum:
            return text
        return f"{text}: only {self.num_here} of the {self.quorum} required sites are available"


Tell = Callable[[Awaited], None]


@dataclass(frozen=True)
class Attendance:
    """Sites that are online, and sites that are no longer waited for.

    Attributes
    ----------
    membership : Membership
        The sites that are online.
    absent : frozenset of str
        Sites that did not come back in time, or that failed and went offline. They are not waited
        for again, but take part again as soon as they are online.
    quorum_wait_s : float
        Time spent waiting for the quorum without success so far, in seconds.
    """

    membership: Membership
    absent: frozenset[str] = frozenset()
    quorum_wait_s: float = 0.0

    def wait(
        self,
        grid: Grid,
        kept: Iterable[str],
        min_sites: int,
        wait_s: float,
        patience_s: float = 0.0,
        tell: Tell = lambda awaited: None,
    ) -> "Attendance":
        """Wait once for each site that went offline, and for any site while below the quorum.

        Parameters
        ----------
        grid
            Reports which nodes are online.
        kept
            Sites whose replies are already stored.
        min_sites
            The quorum.
        wait_s
            Longest wait, in seconds.
        patience_s
            Longest wait for the quorum, in seconds, if longer than ``wait_s``. All waits until the
            quorum is met count together.
        tell
            Called with the awaited sites: at first, when the online sites change, and at regular
            intervals.
        """
        here = set(kept)

        def on_wait(membership: Membership, left_s: float) -> None:
            missing = sorted(set(membership.missing) - here)
            number = len(here | set(membership.nodes))
            awaited = Awaited(missing, number, min_sites, left_s)
            log(WARNING, "%s", awaited)
            tell(awaited)

        membership = refresh(self.membership, grid, min(NEWCOMER_S, wait_s))
        expected = set(membership.missing) - self.absent - here
        if expected:
            membership = wait_until_online(
                membership, grid, lambda on: expected <= set(on), wait_s, on_wait
            )
        quorum_wait_s, started = 0.0, time.monotonic()
        if len(here | set(membership.nodes)) < min_sites:
            membership = wait_until_online(
                membership,
                grid,
                lambda on: len(here | set(on)) >= min_sites,
                max(wait_s, patience_s - self.quorum_wait_s),
                on_wait,
            )
            if len(here | set(membership.nodes)) < min_sites:
                quorum_wait_s = self.quorum_wait_s + time.monotonic() - started
        absent = (self.absent | expected) & frozenset(membership.missing)
        return Attendance(membership, absent, quorum_wait_s)
