"""The error for too few replies: what happened at each site, and whether its input is the cause."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from strategies.common.errors import QuorumError, RunError, SiteInputError
from strategies.exchange.causes import BAD_INPUT, Cause
from strategies.exchange.outcome import Outcome, causes_by_site, reasons, reasons_by_site


class Waited(NamedTuple):
    """How long sites were waited for, in seconds, and the key that limits it."""

    seconds: float
    key: str


NOT_WAITED = Waited(0.0, "")

NOT_IN_TIME = frozenset({Cause.NO_REPLY, Cause.LATE})

_INPUTS = {Cause.CONFIG: "config", Cause.DATA: "data", Cause.MODEL: "model", Cause.PLAN: "plan"}


def too_few(
    what: str,
    outcome: Outcome,
    got: int,
    quorum: int,
    online: Collection[str],
    waited: Waited = NOT_WAITED,
) -> RunError:
    """Return the error that ends a run with too few replies.

    It is a `SiteInputError` if the quorum would be met with the sites that cannot use their config,
    data or model, or do not understand the plan: waiting does not fix these. Otherwise it is a
    `QuorumError`.

    Parameters
    ----------
    what
        What happened, in one clause. The number of attempts is appended.
    outcome
        What happened at the sites.
    got, quorum
        Number of accepted replies, and number required.
    online
        Sites that are online.
    waited
        How long the quorum was waited for in vain.
    """
    hint = reasons(outcome.dropped, outcome.missing)
    if slow := [
        site for site, why in outcome.causes.items() if why in NOT_IN_TIME and site in online
    ]:
        hint += f". If {', '.join(sorted(slow))} had too little time, set round-deadline-s"
    if waited.seconds:
        hint += f". Waited {waited.seconds:.0f} s for the quorum; to wait longer, set {waited.key}"
    what += f", after {outcome.attempts} attempt{'s' if outcome.attempts > 1 else ''}"
    expected = f"{quorum} or more"
    unusable = {site: why for site, why in outcome.causes.items() if why in BAD_INPUT}
    if unusable and got + len(unusable) >= quorum:
        return SiteInputError(
            f"{what}: {_blame(unusable)}", where="min-sites", got=got, expected=expected, hint=hint
        )
    return QuorumError(
        what,
        where="min-sites",
        got=got,
        expected=expected,
        hint=hint,
        dropped=reasons_by_site(outcome.dropped, outcome.missing),
        causes=causes_by_site(outcome.causes, outcome.missing),
    )


def _blame(unusable: Mapping[str, Cause]) -> str:
    """Return which inputs are unusable and where, e.g. ``the data at site-1 cannot be used``."""
    sites_of: dict[str, list[str]] = {}
    for site in sorted(unusable):
        sites_of.setdefault(_INPUTS[unusable[site]], []).append(site)
    blamed = [f"the {kind} at {', '.join(sites)}" for kind, sites in sorted(sites_of.items())]
    return f"{' and '.join(blamed)} cannot be used"
