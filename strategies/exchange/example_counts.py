"""Consistency checks on the numbers of examples that sites report.

The number of examples determines a site's weight in the average and in the selection of the best
model, and only the site can count its examples. So a count must not change during a run, and must
not exceed the size of the data set that the site reported when it introduced itself.

A site with a stream reports the examples that it used in a round, which is a fixed number for each
step. The first reply does not show whether the number or the number per step is fixed. As soon as a
round has another number of steps, only one of the two is left.
"""

from collections.abc import Mapping
from fractions import Fraction

from strategies.aggregation.averaging import Update
from strategies.exchange.causes import Cause
from strategies.exchange.gate import COUNTS, Rejection
from strategies.exchange.messages import NUM_EXAMPLES, NUM_VALIDATION
from strategies.exchange.metrics import Value, numbers

Fixed = Mapping[str, Fraction]
"""What may be fixed of a site's count, as text behind the number, with the number."""


class Claims:
    """The example counts of every site, as far as its accepted replies have fixed them."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Fixed]] = {}

    def check(
        self, verdict: Update | Rejection, most: Mapping[str, int], steps: int = 0
    ) -> Update | Rejection:
        """Return the verdict on a reply, or a rejection if its counts are inconsistent.

        Parameters
        ----------
        verdict
            Verdict of the gate on the reply.
        most
            Size of each site's data set, for the sites that reported it.
        steps
            Optimizer steps of the round; 0 if it is not counted in steps.
        """
        if isinstance(verdict, Rejection):
            return verdict
        reason = self._contradiction(verdict.site, verdict.metrics, most, steps)
        return Rejection(verdict.site, Cause.CLAIM, reason) if reason else verdict

    def _contradiction(
        self, site: str, metrics: Mapping[str, Value], most: Mapping[str, int], steps: int
    ) -> str | None:
        """Return why a site's counts are inconsistent; if they are not, store them, return None."""
        counts = numbers({name: metrics[name] for name in sorted(COUNTS & set(metrics))})
        known = self._known.setdefault(site, {})
        left: dict[str, Fixed] = {}
        for name, count in counts.items():
            now = _fixed(count, steps if name == NUM_EXAMPLES else 0)
            before = known.get(name, now)
            left[name] = {what: value for what, value in now.items() if before.get(what) == value}
            if not left[name]:
                was = " or ".join(f"{value}{what}" for what, value in before.items())
                return f"metrics: {name!r} is {count}, but was {was} before"
        total = counts.get(NUM_EXAMPLES, 0) + counts.get(NUM_VALIDATION, 0)
        if site in most and total > most[site]:
            return f"metrics: {total} examples, but the site reported a data set of {most[site]}"
        known |= left
        return None


def _fixed(count: float, steps: int) -> Fixed:
    """Return what may be fixed of a count: it itself and, in a round of steps, it per step."""
    whole = Fraction(count)
    return {"": whole, " per step": whole / steps} if steps else {"": whole}
