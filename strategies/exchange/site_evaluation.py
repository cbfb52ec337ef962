"""Let the sites evaluate a model on their validation data, in an exchange of its own."""

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, MessageType

from strategies.aggregation.averaging import Update
from strategies.exchange.attendance import Attendance
from strategies.exchange.deadline import Pacing
from strategies.exchange.example_counts import Claims
from strategies.exchange.gate import judge_evaluate
from strategies.exchange.gathering import Gathering, Request, Silent, Terms
from strategies.exchange.lineage import Lineages
from strategies.exchange.messages import evaluate_content, with_base
from strategies.exchange.metrics import SiteMetrics, Value
from strategies.exchange.outcome import Outcome
from strategies.exchange.signature import with_signature
from strategies.exchange.update_store import MemoryUpdates

TERMS = Terms(min_sites=0, max_retries=0, wait_s=0.0, again=False)
"""Each online site is asked once; no quorum is needed."""


def site_evaluation(
    packed: ArrayRecord,
    round_number: int,
    sites: Attendance,
    pacing: Pacing,
    claims: Claims,
    metrics: SiteMetrics,
    base: str = "",
    lineages: Lineages | None = None,
    signature: Mapping[str, str] | None = None,
) -> Gathering:
    """Return the exchange.

    Parameters
    ----------
    packed
        The model to evaluate.
    round_number
        Round number in every message.
    sites
        The sites to ask.
    pacing
        How long to wait for replies.
    claims
        Numbers of examples that the sites have reported.
    metrics
        The metrics that a site may send.
    base
        Digest of the arrays that are not exchanged; empty if there are none.
    lineages
        The states of the sites that belong to the model, if sites keep state.
    signature
        What sites must agree on about the job.
    """
    states = lineages or Lineages("", {})
    request = Request(
        kind=MessageType.EVALUATE,
        plan_id="",
        round=round_number,
        what="evaluations",
        content=lambda site, left_s: states.put_in(
            with_signature(with_base(evaluate_content(packed), base), signature or {}), site
        ),
        judge=lambda reply, site: judge_evaluate(reply, site, metrics),
    )
    return Gathering(
        request,
        Outcome(),
        sites,
        terms=TERMS,
        pacing=pacing,
        claims=claims,
        store=MemoryUpdates(),
        listener=Silent(),
    )


def add_evaluation(
    outcome: Outcome,
    gathering: Gathering,
    replies: Iterable[Update],
    max_share: float,
    metrics: SiteMetrics,
) -> dict[str, Value]:
    """Add dropped sites and bytes to a record's outcome; return the sites' mean metrics.

    No site has more than ``max_share`` of the sum of the weights; see
    `SiteMetrics.mean_validation`.
    """
    outcome.sent_bytes += gathering.outcome.sent_bytes
    for site, reason in gathering.outcome.dropped.items():
        before = f"{outcome.dropped[site]}; " if site in outcome.dropped else ""
        outcome.dropped[site] = f"{before}evaluation: {reason}"
    return metrics.mean_validation({reply.site: reply.metrics for reply in replies}, max_share)
