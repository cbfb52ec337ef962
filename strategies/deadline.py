"""How long a round's replies are waited for: a fixed time, or one learned from the sites."""

from collections.abc import Mapping
from dataclasses import dataclass

SHORTEST_S = 60.0
"""A learned deadline is never shorter: below it, chance decides what a site takes."""


@dataclass(frozen=True)
class Deadline:
    """The rule for a round's deadline.

    Attributes
    ----------
    fixed_s : float
        Seconds for every round; 0 to learn them.
    factor : float
        Learned: how many times longer than the slowest site's usual time is waited, >= 1.
    longest_s : float
        Learned: the deadline of round 1, when nothing is known, and the longest of all.
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
            The how manieth try of the round this is, from 1. A round that had too few updates
            may have had too little time: its learned deadline doubles with each try.
        """
        if self.fixed_s:
            return self.fixed_s
        if not pace:
            return self.longest_s
        usual_s = max(SHORTEST_S, self.factor * max(pace.values()) * work)
        return min(self.longest_s, usual_s * float(2 ** (attempt - 1)))
