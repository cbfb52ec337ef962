"""After the last round: BatchNorm's statistics of the final model, taken anew at the sites.

A running statistic averaged over the sites belongs to other weights than the averaged ones, and
the mean of variances is not the variance of all data. So each site passes its training examples
once through the final model, and the coordinator folds what that gives.

On failure: as in a round. A site whose reply is unfit or missing is asked once more, and is left
out and named then; below the quorum the exchange is repeated for the missing sites, and then the
run stops. Replies are on disk before they count: a coordinator that died asks for the others.
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
from strategies.exchange.metrics import judged_evaluations
from strategies.exchange.requests import Requests
from strategies.exchange.traffic import Traffic
from strategies.exchange.transport import Exchange
from strategies.pending_evaluation import EvaluateFn
from strategies.storage.recalibrations import Recalibrations
from strategies.storage.updates import UpdateStore
from strategies.too_few_sites import too_few


@dataclass
class RecalibrationRecord:
    """What happened when a model's statistics were taken anew; fields as in `RoundRecord`.

    Attributes
    ----------
    plan_id : str
        Names the model: a digest of its arrays.
    participants : dict
        Training examples of each site whose statistics were folded.
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
    """The exchange, on the terms of the run's rounds.

    Attributes
    ----------
    layers : Layers
        Names of the model's running means and variances.
    weighting : Weighting
        Weight of each site: that of the average, whose data the statistics are to describe.
    updates : UpdateStore
        Where replies are kept until they are folded.
    results : Recalibrations
        Where the outcome is kept.
    round_number : int
        Rounds done.
    sites : Attendance
        Who is there.
    min_sites, max_round_retries, wait_s, quorum_patience_s
        As for a round.
    pacing : Pacing
        How long replies are waited for.
    site_evaluation : bool
        Whether the sites evaluate the model with its new statistics.
    on_event : callable
        Told what happens, as a kind and fields.
    max_site_weight : float
        Largest share of a site in the sum of the weights.
    claims : Claims
        What the sites said of their numbers of examples in the rounds.
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
        """Return a model with new statistics, and how they came about.

        A model that had them before, in this process or an earlier one, gets the same again, and
        no site is asked.

        Raises
        ------
        QuorumError
            If too few sites answered as often as they may be asked.
        SiteInputError
            The same, where sites cannot use their config, data or model.
        EngineError
            If the simulation's worker died.
        """
        plan_id = _digest(arrays)
        known = self.results.read(plan_id)
        if known is None:
            started = time.monotonic()
            statistics, record = self._taken(grid, arrays, plan_id)
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
        statistics, told = known
        return {**arrays, **statistics}, told

    def _taken(
        self, grid: Grid, arrays: Arrays, plan_id: str
    ) -> tuple[dict[str, NDArray[np.generic]], RecalibrationRecord]:
        """Ask until enough sites have answered; return the folded statistics."""
        record = RecalibrationRecord(self.round_number, plan_id)
        log(INFO, "taking BatchNorm's statistics of the final model anew")
        self.updates.open(plan_id)
        traffic = Traffic.of(self.updates.updates())
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
        """Ask the sites whose statistics are not here; return all that are, in site order."""
        kept = self.updates.sites()
        pacing = self.pacing.knowing(self.updates.updates())
        longest_s = pacing.seconds(pacing.pace, record.attempts)
        self.sites = self.sites.waited(
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
        """Judge one reply; keep its statistics if they count."""
        site = requests.site_of(reply)
        if site is None or site in requests.accepted:
            log(WARNING, "second statistics of %s are left out", site)
            return
        if self.sites.membership.simulated and engine_died(reply):
            raise EngineError(
                "a worker of the simulation died",
                where=f"statistics of the final model, {site}",
                got=(reply.error.reason or "").splitlines()[0],
            )
        expected = {name: arrays[name] for pair in self.layers.items() for name in pair}
        verdict = self.claims.judged(
            judge_statistics(reply, site, record.plan_id, expected, self.layers),
            requests.membership.num_examples,
        )
        requests.traffic.receive(site, reply)
        if isinstance(verdict, Rejection):
            record.dropped[site] = verdict.reason
            record.causes[site] = verdict.cause
            if verdict.detail:
                record.errors[site] = verdict.detail
            log(WARNING, "statistics of %s do not count: %s", site, verdict.reason)
            requests.reject(site)
        else:
            pace = requests.seconds_of(site) / self.pacing.work
            self.updates.add(requests.traffic.noted_on(replace(verdict, pace=pace)))
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
        record.site_evaluation = judged_evaluations(
            replies, requests, record.dropped, self.claims, self.max_site_weight
        )


def _digest(arrays: Arrays) -> str:
    """Return 16 hex digits that any change of the model changes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]
