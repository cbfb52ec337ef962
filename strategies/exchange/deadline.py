"""How long replies are waited for: a fixed time, or one learned from the sites."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from strategies.aggregation.averaging import Update

SHORTEST_S = 60.0
"""A learned deadline is never shorter: below it, chance decides what a site takes."""

SIMULATED_SPREAD = 10.0
"""How many times longer than the others a simulated site may take that has not answered before.

Simulated sites share one machine, and the largest may hold many times the data of the others. To
drop it would change the result from one machine to the next.
"""


@dataclass(frozen=True)
class Deadline:
    """The rule for deadlines.

    Attributes
    ----------
    fixed_s : float
        Seconds for every round; 0 to learn them.
    factor : float
        Learned: how many times longer than the slowest site is waited, >= 1.
    longest_s : float
        Learned: the deadline where nothing is known, and the longest of all.
    """

    fixed_s: float = 0.0
    factor: float = 3.0
    longest_s: float = 86400.0

    def seconds(self, pace: Mapping[str, float], work: int, attempt: int = 1) -> float:
        """Return the deadline of a round, in seconds.

        Parameters
        ----------
        pace
            Seconds each site took for a unit of local work when it last answered, from the
            sending of the model to the arrival of its reply: training, both transfers, and in
            a simulation the wait for a free core.
        work
            The round's local epochs, or steps.
        attempt
            Number of this attempt at the round, from 1. A round that had too few updates may
            have had too little time: its learned deadline doubles with each attempt.
        """
        if self.fixed_s:
            return self.fixed_s
        if not pace:
            return self.longest_s
        usual_s = max(SHORTEST_S, self.factor * max(pace.values()) * work)
        return min(self.longest_s, usual_s * float(2 ** (attempt - 1)))

    def patience_s(self, seconds: Iterable[float]) -> float:
        """Return how long a site is waited for once a quorum has answered, in seconds.

        Parameters
        ----------
        seconds
            What the sites took that have answered, and what the others usually take.
        """
        if self.fixed_s:
            return self.fixed_s
        return min(self.longest_s, max(SHORTEST_S, self.factor * max(seconds, default=0.0)))


@dataclass(frozen=True)
class Pacing:
    """The rule, and what is known of the sites in one exchange.

    Attributes
    ----------
    rule : Deadline
        The rule.
    quorum : int
        Answers that are needed; with so many, no other is waited for much longer.
    pace : Mapping[str, float]
        Seconds that each site took for a unit of work when it last answered, as far as known.
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

    def knowing(self, updates: Iterable[Update]) -> "Pacing":
        """Return the same with the paces of updates that are here already."""
        measured = {update.site: update.pace for update in updates if update.pace}
        return replace(self, pace={**self.pace, **measured})

    def usual_s(self, site: str) -> float:
        """Return the seconds that a site usually takes; 0 if that is not known."""
        return self.pace.get(site, 0.0) * self.work

    def seconds(self, sites: Iterable[str], attempt: int = 1) -> float:
        """Return the deadline of an attempt, in seconds, learned from these sites alone."""
        known = {site: self.pace[site] for site in sites if site in self.pace}
        return self.rule.seconds(known, self.work, attempt)

    def patience_s(self, took: Mapping[str, float], waiting: Iterable[str]) -> float:
        """Return how long each site that has not answered is waited for, from its asking.

        Parameters
        ----------
        took
            Seconds that each site took whose answer is here.
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
