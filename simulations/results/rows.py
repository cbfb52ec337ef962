"""The numbers of a comparison's table: one row per arm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mdc_flower.common.shown_metrics import ShownMetric, others
from simulations.results.intervals import Interval, Scale
from simulations.results.outcome import Outcome
from simulations.results.result_files import ArmFacts, Facts, Results

AVERAGING = ("federated", "flower-fedavg")
"""Kinds of arms whose sites train one model together."""


@dataclass(frozen=True)
class Row:
    """One arm's row of the table; all fields but the metrics are means over seeds.

    Attributes
    ----------
    arm : str
        Name of the arm.
    score, difference : Interval
        The metric by which the arms are compared, after the last round; its difference from the
        first arm, paired by seed.
    others : Mapping[str, Interval]
        The job's other metrics after the last round, by name.
    steps, examples : float or None
        Optimizer steps, one after the other; examples trained on, at all sites together. None if a
        result of an earlier version does not have them.
    exchanges : float
        Exchanges with all sites.
    sent_megabytes, received_megabytes : float
        Model bytes sent to and received from all sites, in units of 10^6.
    per_step : float
        Sent plus received bytes, as a fraction of what averaging after each step would exchange.
    seconds : float
        Wall time of a run on one core, with the sites trained one after the other.
    """

    arm: str
    score: Interval
    difference: Interval
    others: Mapping[str, Interval]
    steps: float | None
    examples: float | None
    exchanges: float
    sent_megabytes: float
    received_megabytes: float
    per_step: float
    seconds: float


def table_rows(results: Results) -> list[Row]:
    """Return one row per arm, with differences from the first arm, paired by seed."""
    reference = finals(results, results.facts.arms[0].key)
    return [_row(results, arm, reference) for arm in results.facts.arms]


def _row(results: Results, arm: ArmFacts, reference: Mapping[int, float]) -> Row:
    scores = finals(results, arm.key)
    points = [outcome.final for outcome in results.outcomes[arm.key].values()]
    sent = _mean([point.sent_bytes for point in points])
    received = _mean([point.received_bytes for point in points])
    return Row(
        arm.name,
        Interval.of(list(scores.values())),
        difference(scores, reference),
        {
            one.name: Interval.of(list(finals(results, arm.key, one.name).values()))
            for one in shown_others(results)
        },
        _mean_if_known([point.steps for point in points]),
        _mean_if_known([point.examples for point in points]),
        _mean([point.exchanges for point in points]),
        sent / 1e6,
        received / 1e6,
        (sent + received) / arm.per_step_bytes,
        _mean([point.seconds for point in points]),
    )


def best_arm(results: Results, rows: Sequence[Row]) -> int | None:
    """Return the index of the arm with the best mean among those that average.

    If no arm averages, it is among all arms; None if no arm has a finite mean.
    """
    sign = 1.0 if results.facts.metric.better == "max" else -1.0
    known = {
        i: sign * row.score.mean for i, row in enumerate(rows) if math.isfinite(row.score.mean)
    }
    averaging = {i for i, arm in enumerate(results.facts.arms) if arm.kind in AVERAGING}
    candidates = known.keys() & averaging or known.keys()
    return max(candidates, key=lambda index: (known[index], -index), default=None)


def finals(results: Results, arm: str, metric: str = "") -> dict[int, float]:
    """Return a metric of an arm after the last round by seed, sorted by seed.

    Parameters
    ----------
    metric
        The metric's name; by default that of the metric by which the arms are compared.
    """
    facts, by_seed = results.facts, results.outcomes[arm]
    name = metric or facts.metric.name
    return {seed: by_seed[seed].final.metrics(facts.split)[name] for seed in sorted(by_seed)}


def difference(scores: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """Return the scores minus the reference, paired by seed."""
    return Interval.of([value - reference[seed] for seed, value in scores.items()])


def shown_others(results: Results) -> list[ShownMetric]:
    """Return the metrics of the sites beside the one of the comparison, without the loss.

    All arms must have them. Metrics that are lists of numbers, such as one for each class, are not
    in the results.
    """
    known = [
        set(outcome.final.metrics(results.facts.split))
        for by_seed in results.outcomes.values()
        for outcome in by_seed.values()
    ]
    return [
        one
        for one in others(results.facts.shown)
        if one.leaves_site and all(one.name in names for names in known)
    ]


def scale_of(facts: Facts, rows: Sequence[Row]) -> Scale:
    """Return how the scores and differences of these rows are written."""
    return Scale.of(facts.metric, [row.score.mean for row in rows])


def difference_unit(metric: ShownMetric) -> str:
    """Return the unit of a difference: points for a percentage."""
    return "points" if metric.unit == "%" else metric.unit


def megabytes(by_seed: Mapping[int, Outcome]) -> float:
    """Return the mean number of bytes exchanged both ways, in units of 10^6."""
    points = [outcome.final for outcome in by_seed.values()]
    return _mean([point.sent_bytes + point.received_bytes for point in points]) / 1e6


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_if_known(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None
