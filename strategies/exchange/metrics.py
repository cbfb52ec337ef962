"""Metrics: what a job declares about them, and how the values of several sites become one.

A site sends either a value, which is a mean over its examples, or sums, from which the value over
all sites' examples can be computed even if it is no mean (such as an F1 score).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from strategies.aggregation.averaging import capped
from strategies.exchange.messages import NUM_EXAMPLES, NUM_VALIDATION

Value = float | list[float]
"""A metric's value: a number, or a list of numbers such as one for each class."""

TRAIN, VALIDATION = "train-", "validation-"
"""Prefixes of a metric's name in messages and records."""


NAME = re.compile(f"({TRAIN}|{VALIDATION})[a-z0-9]+(-[a-z0-9]+)*")
"""Every name of a metric in messages."""

NUM_STEPS, TRAIN_SECONDS = "num-steps", "train-seconds"

ALWAYS = (NUM_EXAMPLES, NUM_STEPS, TRAIN_SECONDS)
"""What a train reply may contain whatever the job; only the number of examples must be there."""


@dataclass(frozen=True)
class Metric:
    """A metric that is computed from sums over the examples.

    Attributes
    ----------
    name : str
        Its name in records and tables: lower-case letters, digits and hyphens.
    better : str
        ``max`` or ``min``: which values are better.
    finish : callable
        Takes the sums over all examples, as a list of float; returns the value.
    sums : str
        Name of the sums in a job's `Forward.sums`; several metrics may share them.
    size : int
        How many numbers a site sends: the length of the sums. 0 if a site sends the value itself,
        which is then averaged over the sites, weighted by their numbers of examples.
    low, high : float
        The range of its values. A site that sends a value outside is not trusted.
    per_example : tuple of float
        The range of each of the sums, per example. A site whose sums are outside, given the number
        of examples that it claims, is not trusted. Without a range, `capped` cannot keep a site
        with huge sums from dominating the metric.
    unit : str
        The unit of its values, for tables and figures; ``%`` for a share, shown as a percentage.
    in_training : bool
        Whether it is also computed while training.
    leaves_site : bool
        Whether a site may send it.
    selects : bool
        Whether it selects the best model.
    """

    name: str
    better: Literal["max", "min"]
    finish: Callable[[list[float]], Value]
    sums: str
    size: int = 0
    low: float = -math.inf
    high: float = math.inf
    per_example: tuple[float, float] = (-math.inf, math.inf)
    unit: str = ""
    in_training: bool = True
    leaves_site: bool = True
    selects: bool = False

    def is_better(self, one: float, other: float) -> bool:
        """Return whether a value is better than another; NaN never is."""
        return one > other if self.better == "max" else one < other

    def compute(self, sums: list[float]) -> Value:
        """Return the value of sums.

        Raises
        ------
        ValueError
            If the job's function raises, or returns no number and no list of numbers.
        """
        try:
            value = self.finish(sums)
        except Exception as error:  # the function is the user's, and the sums may be anything
            raise ValueError(f"{type(error).__name__}: {error}") from error
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"the value is a {type(number).__name__}, not a number")
        return value

    def value(self, sent: Value) -> Value:
        """Return the value of what one or more sites have sent; NaN if there is none."""
        if not isinstance(sent, list):
            return sent
        try:
            return self.compute(sent)
        except ValueError:
            return math.nan


def ratio(sums: list[float]) -> float:
    """Return the first sum divided by the second; NaN if the second is 0."""
    above, below = sums
    return above / below if below else math.nan


LOSS = Metric("loss", "min", ratio, "loss")
"""The mean loss per example."""

ACCURACY = Metric("accuracy", "max", ratio, "accuracy", low=0.0, high=1.0, unit="%", selects=True)
"""The share of examples whose class is predicted."""

CLASSIFICATION = (replace(LOSS, unit="nats"), ACCURACY)
"""What the sites of a single-label classification may send."""


class SiteMetrics:
    """The metrics that the sites of a run may send, by their names in messages.

    Parameters
    ----------
    metrics
        The job's metrics, the loss among them.
    """

    def __init__(self, metrics: Iterable[Metric] = CLASSIFICATION) -> None:
        self.all = tuple(metrics)
        sent = [metric for metric in self.all if metric.leaves_site]
        self.training = {TRAIN + metric.name: metric for metric in sent if metric.in_training}
        self.validation = {VALIDATION + metric.name: metric for metric in sent}

    @property
    def selection(self) -> Metric:
        """Return the metric that selects the best model: the one declared, or the loss."""
        return next((metric for metric in self.all if metric.selects), LOSS)

    @property
    def names(self) -> frozenset[str]:
        """Return every name that a train reply may contain."""
        return frozenset({*ALWAYS, NUM_VALIDATION, *self.training, *self.validation})

    def values(self, sent: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values of what a site has sent."""
        metrics = self.training | self.validation
        return {n: metrics[n].value(value) if n in metrics else value for n, value in sent.items()}

    def mean_training(self, by_site: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
        """Return the training metrics over all sites, and the sum of their examples."""
        means = {name: None for name in ALWAYS if name != NUM_EXAMPLES}
        return _over_sites(by_site, {**means, **self.training}, NUM_EXAMPLES)

    def mean_validation(
        self, by_site: Mapping[str, Mapping[str, Value]], max_share: float = 1.0
    ) -> dict[str, Value]:
        """Return the validation metrics over the sites that send them, and the sum of examples.

        No site has more than ``max_share`` of the sum of the weights; see `capped`.
        """
        validated = {site: sent for site, sent in by_site.items() if NUM_VALIDATION in sent}
        return _over_sites(validated, self.validation, NUM_VALIDATION, max_share)


VALIDATION_LOSS, VALIDATION_ACCURACY = VALIDATION + LOSS.name, VALIDATION + ACCURACY.name

VALIDATION_METRICS = frozenset({NUM_VALIDATION, VALIDATION_LOSS, VALIDATION_ACCURACY})
"""What the sites of a classification may send about the global model."""

TRAIN_METRICS = SiteMetrics().names
"""What they may send in all."""


def described(metrics: Iterable[Metric]) -> list[dict[str, str | bool]]:
    """Return what views need to know about the metrics, as plain data."""
    return [
        {
            "name": metric.name,
            "better": metric.better,
            "unit": metric.unit,
            "selects": metric.selects,
            "leaves-site": metric.leaves_site,
        }
        for metric in metrics
    ]


def may_be_metric(name: str) -> bool:
    """Return whether a name may be that of a metric in a reply, of whatever job."""
    return name in (*ALWAYS, NUM_VALIDATION) or NAME.fullmatch(name) is not None


def is_finite(value: Value) -> bool:
    """Return whether a value, or each of its numbers, is finite."""
    return all(map(math.isfinite, value if isinstance(value, list) else [value]))


def numbers(metrics: Mapping[str, Value]) -> dict[str, float]:
    """Return the metrics that are single numbers."""
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def _over_sites(
    by_site: Mapping[str, Mapping[str, Value]],
    metrics: Mapping[str, Metric | None],
    weight: str,
    max_share: float = 1.0,
) -> dict[str, Value]:
    """Return each metric over the sites that send it, in site order, and the sum of the counts."""
    if not by_site:
        return {}
    over: dict[str, Value] = {weight: sum(_number(sent[weight]) for sent in by_site.values())}
    for name in sorted(metrics):
        sharing = [sent for sent in by_site.values() if name in sent]
        if not sharing:
            continue
        counts = [_number(sent[weight]) for sent in sharing]
        weights = capped(counts, max_share)
        metric, values = metrics[name], [sent[name] for sent in sharing]
        if metric is not None and metric.size:
            shares = [w / count for w, count in zip(weights, counts, strict=True)]
            over[name] = metric.value(_merged(values, shares))
        else:
            pairs = zip(weights, values, strict=True)
            over[name] = sum(w * _number(value) for w, value in pairs) / sum(weights)
    return over


def _merged(pieces: Sequence[Value], shares: Sequence[float]) -> list[float]:
    """Return the sum of the sites' sums, each multiplied by its share."""
    lists = [piece for piece in pieces if isinstance(piece, list)]
    columns = zip(*lists, strict=True)
    return [sum(s * x for s, x in zip(shares, column, strict=True)) for column in columns]


def _number(value: Value) -> float:
    if isinstance(value, list):
        raise TypeError(f"expected one number, got {value}")
    return value
