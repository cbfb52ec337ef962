"""Recalibration: recompute the BatchNorm statistics of the final model after the last round.

Averaged running statistics do not belong to the averaged weights, and a mean of variances is not
the variance of all data. So each site passes its training examples once through the final model,
and the coordinator pools the resulting statistics.

Failures are handled as in a round. A site whose reply is rejected or missing gets one more request;
if that fails too, it is left out and named in the record. Below the quorum the exchange is repeated
for the missing sites, and then the run stops. Replies are stored on disk before they count, so a
resumed run asks only the other sites.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from strategies.aggregation.averaging import Arrays, Update, Weighting, bounded
from strategies.aggregation.pooled_statistics import Layers, pooled_statistics
from strategies.common.errors import EngineError
from strategies.common.fault_points import reach
from strategies.common.log import log
from strategies.exchange.attendance import Attendance
from strategies.exchange.causes import Cause
from strategies.exchange.deadline import Pacing
from strategies.exchange.example_counts import Claims
from strategies.exchange.gate import Rejection, engine_died, judge_statistics
from strategies.exchange.messages import (
    STATISTICS,
    arrays_to_record,
    evaluate_content,
    statistics_content,
)
from strategies.exchange.metrics import mean_evaluation
from strategies.exchange.requests import Requests
from strategies.exchange.traffic import Traffic
from strategies.exchange.transport import Exchange
from strategies.pending_evaluation import EvaluateFn
from strategies.storage.recalibrations import Recalibrations
from strategies.storage.updates import UpdateStore
from strategies.too_few_sites import too_few


@dataclass
class RecalibrationRecord:
    """Record of one recalibration; other fields as in `RoundRecord`.

    Attributes
    ----------
    plan_id : str
        Digest of the model's arrays; identifies the model.
    participants : dict
        Training examples of each site whose statistics were pooled.
    """

    round: int
    plan_id: str
    participants: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    causes: dict[str, Cause] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    asked_again: list[str] = field(default_factory=list)
    attempts: int = 1
    deadline_s: float = 0.0
    evaluation: dict[str, Any] = field(default_factory=dict)
    site_evaluation: dict[str, float] = field(default_factory=dict)
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0


@dataclass
class Recalibration:
    """The recalibration exchange, with the settings of the run's rounds.

    Attributes
    ----------
    layers : Layers
        Names of the model's running means and variances.
    weighting : Weighting
        Weight of each site; the same as in the average of the models.
    updates : UpdateStore
        Stores replies until they are pooled.
    results : Recalibrations
        Stores the outcome.
    round_number : int
        Number of finished rounds.
    sites : Attendance
        Sites that are online, and sites that are no longer waited for.
    min_sites, max_round_retries, wait_s, quorum_patience_s
        As for a round.
    pacing : Pacing
        How long to wait for replies.
    site_evaluation : bool
        Whether the sites evaluate the model with its new statistics.
    on_event : callable
        Called with the kind and the fields of each event.
    max_site_weight : float
        Largest share of one site in the sum of the weights.
    claims : Claims
        Numbers of examples that the sites reported in the rounds.
    """

    layers: Layers
    weighting: Weighting
    updates: UpdateStore
    results: Recalibrations
    round_number: int
    sites: Attendance
    min_sites: int
    max_round_retries: int
    wait_s: float
    quorum_patience_s: float
    pacing: Pacing
    site_evaluation: bool
    on_event: Callable[..., None]
    max_site_weight: float = 1.0
    claims: Claims = field(default_factory=Claims)

    def apply(
        self, grid: Grid, arrays: Arrays, evaluate: EvaluateFn
    ) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
        """Return the model with new statistics, and the record of the recalibration.

        If this model was recalibrated before, by this process or an earlier one, the stored result
        is returned and no site is asked.

        Raises
        ------
        QuorumError
            If too few sites answered in every attempt.
        SiteInputError
            If too few sites answered because sites cannot use their config, data or model.
        EngineError
            If a simulation worker died.
        """
        plan_id = _digest(arrays)
        known = self.results.read(plan_id)
        if known is None:
            started = time.monotonic()
            statistics, record = self._collect(grid, arrays, plan_id)
            packed = arrays_to_record({**arrays, **statistics})
            record.evaluation = dict(evaluate(self.round_number, packed) or {})
            if self.site_evaluation:
                self._evaluate(grid, packed, record)
            record.seconds = round(time.monotonic() - started, 3)
            reach("recalibrated", round=self.round_number)
            self.results.save(plan_id, statistics, asdict(record))
            self.on_event("recalibrated", **asdict(record))
            self.updates.close(self.round_number)
            known = statistics, asdict(record)
        statistics, outcome = known
        return {**arrays, **statistics}, outcome

    def _collect(
        self, grid: Grid, arrays: Arrays, plan_id: str
    ) -> tuple[dict[str, NDArray[np.generic]], RecalibrationRecord]:
        """Repeat the exchange until the quorum is met; return the pooled statistics."""
        record = RecalibrationRecord(self.round_number, plan_id)
        log(INFO, "recomputing the BatchNorm statistics of the final model")
        self.updates.open(plan_id)
        traffic = Traffic.from_updates(self.updates.updates())
        while True:
            updates = self._attempt(grid, arrays, record, traffic)
            if len(updates) >= self.min_sites:
                reach("statistics-folding", round=self.round_number)
                record.participants = {update.site: update.num_examples for update in updates}
                weighting = bounded(self.weighting, updates, self.max_site_weight)
                return pooled_statistics(updates, weighting, self.layers), record
            if record.attempts > self.max_round_retries:
                raise too_few(
                    "too few sites sent statistics of the final model",
                    record,
                    len(updates),
                    self.min_sites,
                    self.sites.membership.nodes,
                )
            record.attempts += 1

    def _attempt(
        self, grid: Grid, arrays: Arrays, record: RecalibrationRecord, traffic: Traffic
    ) -> list[Update]:
        """Ask the sites without stored statistics; return all stored ones, in site order."""
        kept = self.updates.sites()
        pacing = self.pacing.with_updates(self.updates.updates())
        longest_s = pacing.seconds(pacing.pace, record.attempts)
        self.sites = self.sites.wait(
            grid,
            kept,
            self.min_sites,
            min(self.wait_s, longest_s),
            self.quorum_patience_s,
            lambda awaited: self.on_event("sites-awaited", **asdict(awaited)),
        )
        here = {*self.sites.membership.nodes, *kept}
        record.deadline_s = pacing.seconds(here, record.attempts)
        packed = arrays_to_record(arrays)
        requests = Requests(
            grid,
            self.sites.membership,
            self.round_number,
            lambda left_s: statistics_content(packed, record.plan_id, left_s),
            deadline_s=record.deadline_s,
            wait_s=self.wait_s,
            kept=kept,
            kind=STATISTICS,
            traffic=traffic,
            pacing=pacing,
        )
        asked = [site for site in self.sites.membership.nodes if site not in kept]
        self.on_event("recalibration-started", round=self.round_number, sites=asked, kept=kept)
        reach("recalibrating", round=self.round_number)
        for reply in Exchange(grid).replies(requests.first(), record.deadline_s, requests):
            if reply.metadata.message_type == MessageType.QUERY:
                requests.introduce(reply)
            else:
                self._take(reply, requests, arrays, record)
        record.asked_again = traffic.asked_again()
        record.sent_bytes = traffic.sent_bytes.total()
        record.received_bytes = traffic.received_bytes.total()
        self.sites = replace(
            self.sites, membership=requests.membership, absent=self.sites.absent | requests.gone()
        )
        updates = self.updates.updates()
        answered = {*traffic.times, *(update.site for update in updates)}
        record.missing = sorted(set(self.sites.membership.missing) - answered)
        return updates

    def _take(
        self, reply: Message, requests: Requests, arrays: Arrays, record: RecalibrationRecord
    ) -> None:
        """Check one reply; store its statistics if they are accepted."""
        site = requests.site_of(reply)
        if site is None or site in requests.accepted:
            log(WARNING, "ignoring a second statistics reply from %s", site)
            return
        if self.sites.membership.simulated and engine_died(reply):
            raise EngineError(
                "a worker of the simulation died",
                where=f"statistics of the final model, {site}",
                got=(reply.error.reason or "").splitlines()[0],
            )
        expected = {name: arrays[name] for pair in self.layers.items() for name in pair}
        verdict = self.claims.check(
            judge_statistics(reply, site, record.plan_id, expected, self.layers),
            requests.membership.num_examples,
        )
        requests.traffic.receive(site, reply)
        if isinstance(verdict, Rejection):
            record.dropped[site] = verdict.reason
            record.causes[site] = verdict.cause
            if verdict.detail:
                record.errors[site] = verdict.detail
            log(WARNING, "statistics of %s rejected: %s", site, verdict.reason)
            requests.reject(site)
        else:
            pace = requests.seconds_of(site) / self.pacing.work
            self.updates.add(requests.traffic.record_in(replace(verdict, pace=pace)))
            record.dropped.pop(site, None)
            record.causes.pop(site, None)
            requests.accept(site)
            reach("statistics-accepted", site=site, count=len(requests.accepted))
        self.on_event(
            "statistics-answered",
            round=self.round_number,
            site=site,
            dropped=record.dropped.get(site),
        )

    def _evaluate(self, grid: Grid, packed: ArrayRecord, record: RecalibrationRecord) -> None:
        """Let the sites evaluate the model with its new statistics."""
        requests = Requests(
            grid,
            self.sites.membership,
            self.round_number,
            lambda left_s: evaluate_content(packed),
            deadline_s=record.deadline_s,
            wait_s=0.0,
            kind=MessageType.EVALUATE,
            pacing=self.pacing,
            again=False,
        )
        messages = requests.first()
        record.sent_bytes += packed.count_bytes() * len(messages)
        replies = Exchange(grid).replies(messages, record.deadline_s, requests)
        record.site_evaluation = mean_evaluation(
            replies, requests, record.dropped, self.claims, self.max_site_weight
        )


def _digest(arrays: Arrays) -> str:
    """Return a 16-digit hex digest of the model."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]
