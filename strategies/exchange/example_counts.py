"""What sites say of how many examples they have: each site is held to what it said first.

The number of examples weighs a site in the average and in the choice of the best model, and only
the site can count them. So a number may not change while a run goes on, nor be above what the site
said of its data set when it introduced itself.
"""

from collections.abc import Mapping

from strategies.aggregation.averaging import Update
from strategies.exchange.causes import Cause
from strategies.exchange.gate import COUNTS, Rejection
from strategies.exchange.messages import NUM_EXAMPLES, NUM_VALIDATION


class Claims:
    """The counts of every site, as they were in its first reply that counted."""

    def __init__(self) -> None:
        self._first: dict[str, dict[str, float]] = {}

    def judged(self, verdict: Update | Rejection, most: Mapping[str, int]) -> Update | Rejection:
        """Return the verdict on a reply, or a rejection if its counts are not the site's.

        Parameters
        ----------
        verdict
            What the gate says of it.
        most
            Size of each site's data set, of those that said it.
        """
        if isinstance(verdict, Rejection):
            return verdict
        reason = self.broken(verdict.site, verdict.metrics, most)
        return Rejection(verdict.site, Cause.CLAIM, reason) if reason else verdict

    def broken(
        self, site: str, metrics: Mapping[str, float], most: Mapping[str, int]
    ) -> str | None:
        """Return in which count a site contradicts itself; None, and remember them, if in none."""
        counts = {name: metrics[name] for name in sorted(COUNTS & set(metrics))}
        first = self._first.setdefault(site, {})
        for name, count in counts.items():
            if count != first.get(name, count):
                return f"metrics: {name!r} is {count}, and was {first[name]} before"
        total = counts.get(NUM_EXAMPLES, 0) + counts.get(NUM_VALIDATION, 0)
        if site in most and total > most[site]:
            return f"metrics: {total} examples, and the site said that it has {most[site]}"
        first |= counts
        return None
