"""Whom an exchange waits for before it begins: sites that have gone, for a bounded time."""

from collections.abc import Iterable
from dataclasses import dataclass
from logging import WARNING

from flwr.serverapp import Grid

from strategies.log import log
from strategies.roster import HELLO_DEADLINE_S, Roster, refresh, wait_until_online


@dataclass(frozen=True)
class Attendance:
    """Who is there, and who has been waited for in vain.

    Attributes
    ----------
    roster : Roster
        The sites that are online.
    absent : frozenset of str
        Sites that did not come back in time, or failed and went; they are not waited for again,
        and take part again as soon as they are there.
    """

    roster: Roster
    absent: frozenset[str] = frozenset()

    def waited(
        self, grid: Grid, kept: Iterable[str], min_sites: int, wait_s: float
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
        """
        roster = refresh(self.roster, grid, min(HELLO_DEADLINE_S, wait_s))
        here = set(kept)
        expected = set(roster.missing) - self.absent - here
        if expected:
            log(WARNING, "waiting up to %g s for %s", wait_s, ", ".join(sorted(expected)))
            roster = wait_until_online(roster, grid, lambda on: expected <= set(on), wait_s)
        if len(here | set(roster.nodes)) < min_sites:
            missing = ", ".join(roster.missing)
            log(WARNING, "below the quorum: waiting up to %g s for %s", wait_s, missing)
            roster = wait_until_online(
                roster, grid, lambda on: len(here | set(on)) >= min_sites, wait_s
            )
        return Attendance(roster, (self.absent | expected) & frozenset(roster.missing))
