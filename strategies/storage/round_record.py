"""The record of one round, and the protocol for observers of a run."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from strategies.exchange.attendance import Awaited
from strategies.exchange.metrics import Value
from strategies.exchange.outcome import Outcome
from strategies.method.round_plan import RoundPlan
from strategies.storage.position import Position


@dataclass
class RoundRecord(Outcome):
    """What happened in one round: a line of ``history.jsonl``.

    If a coordinator died during the round, the sites that it had dropped are not included; the
    event log has them.

    Attributes
    ----------
    plan : dict
        The round plan, with its id.
    participants : dict
        Metrics of each site whose update was averaged.
    training : dict
        The training metrics over all participants, and the sum of their examples.
    machines : dict
        Device, number format and threads of each participant that reported them.
    dropped : dict
        Reason for each site whose reply did not count or did not arrive.
    causes : dict
        The same as a code, a `Cause`, for each site whose update did not count.
    errors : dict
        Type, message and last lines of the traceback, for each site that failed.
    missing : list
        Known sites, also those that have never come, that were not asked, because they were not
        online.
    asked_again : list
        Sites that were asked more than once.
    late : dict
        Sites whose reply arrived too late, with the round of the request.
    attempts : int
        Number of attempts at the round; more than 1 if there were too few updates.
    deadline_s : float
        Seconds that the sites had to answer. After the quorum is met, the wait may end earlier; the
        reason in ``dropped`` says when.
    joined : list
        Participants that take part from this round on, and in no round before.
    began_anew : list
        Participants that had lost their state of an earlier round and began this one without it.
    relative_change : float or None
        ``||w_i - w_{i-1}|| / ||w_{i-1}||`` over trainable parameters; None if failed.
    adapter_gaps : dict
        For each layer with an adapter A, B (LoRA): how far the mean of the products B A is from the
        product of the means; see `strategies.aggregation.adapter_gaps`.
    failed : bool
        Whether the round gave no new global model: too few updates, or a model that cannot be used.
    evaluation : dict
        Metrics of the new global model at the coordinator.
    start_evaluation : dict
        Metrics on the sites' validation data of the global model that the round started from; they
        arrive with the updates.
    site_evaluation : dict
        The same for the new global model, after the last round.
    sent_bytes, received_bytes : int
        Model bytes sent to and received from the sites, including dropped replies. If a coordinator
        died during the round, only its traffic with sites whose updates were stored is included;
        other messages are sent again and counted once.
    seconds : float
        Wall time from the start of the round until the next round could start. Includes an
        evaluation at the coordinator only if the next round had to wait for it.
    """

    round: int
    plan: dict[str, Any]
    participants: dict[str, dict[str, Value]] = field(default_factory=dict)
    training: dict[str, Value] = field(default_factory=dict)
    machines: dict[str, str] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)
    began_anew: list[str] = field(default_factory=list)
    relative_change: float | None = None
    adapter_gaps: dict[str, float] = field(default_factory=dict)
    failed: bool = False
    evaluation: dict[str, Any] = field(default_factory=dict)
    start_evaluation: dict[str, Value] = field(default_factory=dict)
    site_evaluation: dict[str, Value] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data, round and plan first."""
        return {"round": self.round, "plan": self.plan, **asdict(self)}


class RunObserver(Protocol):
    """Receives notifications of events in a run."""

    def sites_awaited(self, awaited: Awaited) -> None:
        """Handle that the next round waits for sites."""
        ...

    def round_started(self, plan: RoundPlan, sites: Iterable[str], kept: Iterable[str]) -> None:
        """Handle that the plan is sent to ``sites``; updates of ``kept`` are already stored."""
        ...

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        """Handle a site's reply; ``reason`` is why it was rejected, None if it was accepted."""
        ...

    def round_retried(self, record: RoundRecord, quorum: int) -> None:
        """Handle that a round is repeated, because it had fewer than ``quorum`` updates."""
        ...

    def round_folded(self, record: RoundRecord, position: Position) -> None:
        """Handle a round's new model, with everything that the next round depends on.

        The coordinator has not evaluated the model yet; the next round may start before it has.
        """
        ...

    def round_finished(self, record: RoundRecord, position: Position) -> None:
        """Handle a finished round: its record is complete and the best model is known."""
        ...

    def round_failed(self, record: RoundRecord) -> None:
        """Handle a round that ended the run."""
        ...
