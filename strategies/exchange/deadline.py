"""Deadlines: how long to wait for replies, either fixed or learned from the sites."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from strategies.aggregation.averaging import Update

MIN_DEADLINE_S = 60.0
"""Shortest learned deadline, in seconds; reply times below this are mostly noise."""

SIMULATED_SPREAD = 10.0
"""Factor by which a simulated site that has never answered may be slower than the others.

Simulated sites share one machine, and the largest may hold many times the data of the others.
Dropping it would make the result depend on the machine.
"""


@dataclass(frozen=True)
class Deadline:
    """The rule for deadlines.

    Attributes
    ----------
    fixed_s : float
        Deadline of every round, in seconds; 0 to learn deadlines from the sites.
    factor : float
        Learned deadline relative to the time of the slowest site, >= 1.
    longest_s : float
        Longest learned deadline, in seconds; also used before any site's pace is known.
    """

    fixed_s: float = 0.0
    factor: float = 3.0
    longest_s: float = 86400.0

    def seconds(self, pace: Mapping[str, float], work: int, attempt: int = 1) -> float:
        """Return the deadline of a round, in seconds.

        Parameters
        ----------
        pace
            Seconds per unit of local work of each site, measured at its last reply. The time runs
            from sending the model to receiving the reply: training, both transfers, and in a
            simulation the wait for a free core.
        work
            The round's local epochs or local steps.
        attempt
            Attempt number, starting at 1. A round with too few updates may have had too little
            time, so a learned deadline doubles with each attempt.
        """
        if self.fixed_s:
            return self.fixed_s
        if not pace:
            return self.longest_s
        usual_s = max(MIN_DEADLINE_S, self.factor * max(pace.values()) * work)
        return min(self.longest_s, usual_s * float(2 ** (attempt - 1)))

    def patience_s(self, seconds: Iterable[float]) -> float:
        """Return how long to wait for a site after the quorum is met, in seconds.

        Parameters
        ----------
        seconds
            Reply times of the sites that have answered, and usual reply times of the others.
        """
        if self.fixed_s:
            return self.fixed_s
        return min(self.longest_s, max(MIN_DEADLINE_S, self.factor * max(seconds, default=0.0)))


@dataclass(frozen=True)
class Pacing:
    """A deadline rule applied to the sites of one exchange.

    Attributes
    ----------
    rule : Deadline
        The rule.
    quorum : int
        Number of replies required. Once they have arrived, the wait for the others is short.
    pace : Mapping[str, float]
        Seconds per unit of work of each site, measured at its last reply, if known.
    work : int
        Units of work, >= 1.
    simulated : bool
        Whether the sites share one machine.
    """

    rule: Deadline = Deadline()
    quorum: int = 1
    pace: Mapping[str, float] = field(default_factory=dict)
    work: int = 1
    simulated: bool = False

    def with_updates(self, updates: Iterable[Update]) -> "Pacing":
        """Return a copy that includes the paces measured in these updates."""
        measured = {update.site: update.pace for update in updates if update.pace}
        return replace(self, pace={**self.pace, **measured})

    def usual_s(self, site: str) -> float:
        """Return a site's usual reply time in seconds; 0 if unknown."""
        return self.pace.get(site, 0.0) * self.work

    def seconds(self, sites: Iterable[str], attempt: int = 1) -> float:
        """Return the deadline of an attempt, in seconds, learned from these sites only."""
        known = {site: self.pace[site] for site in sites if site in self.pace}
        return self.rule.seconds(known, self.work, attempt)

    def patience_s(self, took: Mapping[str, float], waiting: Iterable[str]) -> float:
        """Return how long to wait for each remaining site, counted from its last request.

        Parameters
        ----------
        took
            Reply time of each site that has answered, in seconds.
        waiting
            Sites that have not answered.

        Returns
        -------
        float
            Seconds; infinity below the quorum.
        """
        if len(took) < self.quorum:
            return math.inf
        slowest_s = max(took.values(), default=0.0)
        spread = SIMULATED_SPREAD if self.simulated else 1.0
        expected = [self.usual_s(site) or spread * slowest_s for site in waiting]
        return self.rule.patience_s([slowest_s, *expected])
