"""What happened in one round, and who is told of it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from strategies.exchange.attendance import Awaited
from strategies.exchange.causes import Cause
from strategies.method.round_plan import RoundPlan
from strategies.storage.position import Position


@dataclass
class RoundRecord:
    """What happened in one round: a line of ``history.jsonl``.

    Whom a coordinator that died had dropped in the round is not in it; the event log has that.

    Attributes
    ----------
    plan : dict
        The round plan, with its id.
    participants : dict
        Metrics of each site whose update was averaged.
    machines : dict
        What each of them computes with, as far as it says so: device, number format, threads.
    dropped : dict
        Reason for each site whose reply did not count, or did not come.
    causes : dict
        The same as a code, a `Cause`, for each site whose update did not count.
    errors : dict
        Type, message and last lines of the trace of each site that failed.
    missing : list
        Sites known to the run that were not asked, because they were not online.
    asked_again : list
        Sites that were asked more than once.
    late : dict
        Sites whose reply to a message came after it had been given up, with the round of it.
    attempts : int
        How often the round was tried: more than 1 where too few sites gave an update.
    deadline_s : float
        Seconds that the sites were given. Once a quorum has answered the others may be given
        up earlier; the reason in ``dropped`` says when.
    relative_change : float or None
        ``||w_i - w_{i-1}|| / ||w_{i-1}||`` over trainable parameters; None if failed.
    failed : bool
        Whether the global model stayed because too few replies were fit; the run ends then.
    evaluation : dict
        Metrics of the new global model at the coordinator.
    start_evaluation : dict
        Metrics, over the sites' validation data, of the global model that the round started
        from; they come with the updates.
    site_evaluation : dict
        The same of the new global model, after the last round.
    sent_bytes, received_bytes : int
        Model bytes to and from the sites, dropped replies included. Of a coordinator that died in
        the round they have what was exchanged with the sites whose updates it had kept; what was
        on its way is sent again, and counted once.
    seconds : float
        Wall time from the beginning of the round until the next one could begin. An evaluation
        at the coordinator is in it only where the next round had to wait for it.
    """

    round: int
    plan: dict[str, Any]
    participants: dict[str, dict[str, float]] = field(default_factory=dict)
    machines: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    causes: dict[str, Cause] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    asked_again: list[str] = field(default_factory=list)
    late: dict[str, int] = field(default_factory=dict)
    attempts: int = 1
    deadline_s: float = 0.0
    relative_change: float | None = None
    failed: bool = False
    evaluation: dict[str, Any] = field(default_factory=dict)
    start_evaluation: dict[str, float] = field(default_factory=dict)
    site_evaluation: dict[str, float] = field(default_factory=dict)
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)


class RunObserver(Protocol):
    """Is told what happens in a run, when it happens."""

    def sites_awaited(self, awaited: Awaited) -> None:
        """Take note of whom the next round waits for."""
        ...

    def round_started(self, plan: RoundPlan, sites: Iterable[str], kept: Iterable[str]) -> None:
        """Take note that the plan goes out to ``sites``; updates of ``kept`` are here already."""
        ...

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        """Take note of a site's reply; ``reason`` says why it does not count, if so."""
        ...

    def round_retried(self, record: RoundRecord, quorum: int) -> None:
        """Take note that a round is repeated, because fewer than ``quorum`` updates came."""
        ...

    def round_folded(self, record: RoundRecord, position: Position) -> None:
        """Take note of a round's new model, and of all that the next round depends on.

        The coordinator has not evaluated the model yet, and the next round may begin before it
        has.
        """
        ...

    def round_finished(self, record: RoundRecord, position: Position) -> None:
        """Take note of a finished round: its record is complete, the best model is known."""
        ...

    def round_failed(self, record: RoundRecord) -> None:
        """Take note of a round that ended the run."""
        ...


def reasons_by_site(dropped: Mapping[str, str], missing: Iterable[str]) -> dict[str, str]:
    """Return by site what became of those whose answers did not count."""
    return {**dropped, **{site: "not online" for site in missing if site not in dropped}}


def causes_by_site(causes: Mapping[str, Cause], missing: Iterable[str]) -> dict[str, Cause]:
    """Return by site the code of why it gave no update."""
    return {**dict.fromkeys(missing, Cause.NOT_ONLINE), **causes}


def reasons(dropped: Mapping[str, str], missing: Iterable[str]) -> str:
    """Return the same in one line."""
    return "; ".join(
        f"{site}: {reason}" for site, reason in reasons_by_site(dropped, missing).items()
    )
