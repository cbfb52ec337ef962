"""Recalibration: recompute the BatchNorm statistics of the final model after the last round.

Averaged running statistics do not belong to the averaged weights, and a mean of variances is not
the variance of all data. So each site passes its training examples once through the final model,
and the coordinator pools the resulting statistics.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from strategies.aggregation.averaging import Arrays, Weighting, bounded
from strategies.aggregation.pooled_statistics import Layers, pooled_statistics
from strategies.common.fault_points import reach
from strategies.common.log import log
from strategies.exchange.attendance import Attendance, Awaited
from strategies.exchange.deadline import Pacing
from strategies.exchange.example_counts import Claims
from strategies.exchange.gate import judge_statistics
from strategies.exchange.gathering import Gathering, Request, Terms
from strategies.exchange.messages import (
    STATISTICS,
    arrays_to_record,
    statistics_content,
    with_base,
)
from strategies.exchange.metrics import SiteMetrics, Value
from strategies.exchange.outcome import Outcome
from strategies.exchange.site_evaluation import add_evaluation, site_evaluation
from strategies.exchange.transport import Exchange
from strategies.exchange.update_store import UpdateStore
from strategies.pending_evaluation import EvaluateFn
from strategies.storage.recalibrations import Recalibrations


@dataclass
class RecalibrationRecord(Outcome):
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
    evaluation: dict[str, Any] = field(default_factory=dict)
    site_evaluation: dict[str, Value] = field(default_factory=dict)
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
    terms : Terms
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
    metrics : SiteMetrics
        The metrics that a site may send.
    base : str
        Digest of the arrays that are not exchanged; empty if there are none.
    """

    layers: Layers
    weighting: Weighting
    updates: UpdateStore
    results: Recalibrations
    round_number: int
    sites: Attendance
    terms: Terms
    pacing: Pacing
    site_evaluation: bool
    on_event: Callable[..., None]
    max_site_weight: float = 1.0
    claims: Claims = field(default_factory=Claims)
    metrics: SiteMetrics = field(default_factory=SiteMetrics)
    base: str = ""

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
            exchange = Exchange(grid)
            statistics, record = self._collect(grid, exchange, arrays, plan_id)
            packed = arrays_to_record({**arrays, **statistics})
            record.evaluation = dict(evaluate(self.round_number, packed) or {})
            if self.site_evaluation:
                self._evaluate(grid, exchange, packed, record)
            record.seconds = round(time.monotonic() - started, 3)
            reach("recalibrated", round=self.round_number)
            self.results.save(plan_id, statistics, asdict(record))
            self.on_event("recalibrated", **asdict(record))
            self.updates.close(self.round_number)
            known = statistics, asdict(record)
        statistics, outcome = known
        return {**arrays, **statistics}, outcome

    def _collect(
        self, grid: Grid, exchange: Exchange, arrays: Arrays, plan_id: str
    ) -> tuple[dict[str, NDArray[np.generic]], RecalibrationRecord]:
        """Gather the statistics of the sites; return the pooled statistics."""
        log(INFO, "recomputing the BatchNorm statistics of the final model")
        record = RecalibrationRecord(self.round_number, plan_id)
        packed = arrays_to_record(arrays)
        expected = {name: arrays[name] for pair in self.layers.items() for name in pair}
        request = Request(
            kind=STATISTICS,
            plan_id=plan_id,
            round=self.round_number,
            what="statistics of the final model",
            content=lambda site, left_s: with_base(
                statistics_content(packed, plan_id, left_s), self.base
            ),
            judge=lambda reply, site: judge_statistics(reply, site, plan_id, expected, self.layers),
        )
        gathering = Gathering(
            request,
            record,
            self.sites,
            terms=self.terms,
            pacing=self.pacing,
            claims=self.claims,
            store=self.updates,
            listener=_Events(self.on_event, self.round_number),
        )
        updates = gathering.gather(grid, exchange)
        self.sites = gathering.sites
        record.participants = {update.site: update.num_examples for update in updates}
        weighting = bounded(self.weighting, updates, self.max_site_weight)
        return pooled_statistics(updates, weighting, self.layers), record

    def _evaluate(
        self, grid: Grid, exchange: Exchange, packed: ArrayRecord, record: RecalibrationRecord
    ) -> None:
        """Let the sites evaluate the model with its new statistics."""
        gathering = site_evaluation(
            packed, self.round_number, self.sites, self.pacing, self.claims, self.metrics
        )
        answers = gathering.gather(grid, exchange)
        record.site_evaluation = add_evaluation(
            record, gathering, answers, self.max_site_weight, self.metrics
        )


@dataclass(frozen=True)
class _Events:
    """Reports the events of the exchange."""

    on_event: Callable[..., None]
    round: int

    def awaited(self, awaited: Awaited) -> None:
        self.on_event("sites-awaited", **asdict(awaited))

    def asked(self, sites: list[str], kept: list[str]) -> None:
        self.on_event("recalibration-started", round=self.round, sites=sites, kept=kept)

    def answered(self, site: str, reason: str | None) -> None:
        self.on_event("statistics-answered", round=self.round, site=site, dropped=reason)

    def repeated(self) -> None:
        pass


def _digest(arrays: Arrays) -> str:
    """Return a 16-digit hex digest of the model."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]
