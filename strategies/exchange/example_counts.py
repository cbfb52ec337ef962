"""Consistency checks on the numbers of examples that sites report.

The number of examples determines a site's weight in the average and in the selection of the best
model, and only the site can count its examples. So a count must not change during a run, and must
not exceed the size of the data set that the site reported when it introduced itself.
"""

from collections.abc import Mapping

from strategies.aggregation.averaging import Update
from strategies.exchange.causes import Cause
from strategies.exchange.gate import COUNTS, Rejection
from strategies.exchange.messages import NUM_EXAMPLES, NUM_VALIDATION
from strategies.exchange.metrics import Value, numbers


class Claims:
    """The example counts of every site, taken from its first accepted reply."""

    def __init__(self) -> None:
        self._first: dict[str, dict[str, float]] = {}

    def check(self, verdict: Update | Rejection, most: Mapping[str, int]) -> Update | Rejection:
        """Return the verdict on a reply, or a rejection if its counts are inconsistent.

        Parameters
        ----------
        verdict
            Verdict of the gate on the reply.
        most
            Size of each site's data set, for the sites that reported it.
        """
        if isinstance(verdict, Rejection):
            return verdict
        reason = self._contradiction(verdict.site, verdict.metrics, most)
        return Rejection(verdict.site, Cause.CLAIM, reason) if reason else verdict

    def _contradiction(
        self, site: str, metrics: Mapping[str, Value], most: Mapping[str, int]
    ) -> str | None:
        """Return why a site's counts are inconsistent; if they are not, store them, return None."""
        counts = numbers({name: metrics[name] for name in sorted(COUNTS & set(metrics))})
        first = self._first.setdefault(site, {})
        for name, count in counts.items():
            if count != first.get(name, count):
                return f"metrics: {name!r} is {count}, but was {first[name]} before"
        total = counts.get(NUM_EXAMPLES, 0) + counts.get(NUM_VALIDATION, 0)
        if site in most and total > most[site]:
            return f"metrics: {total} examples, but the site reported a data set of {most[site]}"
        first |= counts
        return None
