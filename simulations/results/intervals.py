"""Means over seeds with 95% intervals, and how they are written."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mdc_flower.common.shown_metrics import ShownMetric

DIGITS = 4
"""Significant digits of the largest value of a column."""

MOST_DECIMALS = 12


@dataclass(frozen=True)
class Scale:
    """How the values of a metric are written: multiplied by ``factor``, with ``decimals``."""

    factor: float
    decimals: int

    @classmethod
    def of(cls, metric: ShownMetric, values: Iterable[float]) -> "Scale":
        """Return percent with two decimals for a share, else enough decimals for these values."""
        if metric.unit == "%":
            return PERCENT
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        exponent = math.floor(math.log10(largest)) if largest else 0
        return cls(1.0, min(max(DIGITS - 1 - exponent, 0), MOST_DECIMALS))


PERCENT = Scale(100.0, 2)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the half-width of its 95% interval (Student's t); NaN for one seed."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Compute the interval of these values."""
        array = np.asarray(values, dtype=np.float64)
        if len(array) < 2:
            return cls(float(array.mean()), float("nan"))
        t = float(stats.t.ppf(0.975, len(array) - 1))
        return cls(float(array.mean()), t * float(array.std(ddof=1)) / len(array) ** 0.5)

    def text(self, scale: Scale, sign: bool = False) -> str:
        """Return the interval, such as ``98.70 ± 0.35``; empty if the mean is NaN."""
        if math.isnan(self.mean):
            return ""
        mean, half_width = scale.factor * self.mean, scale.factor * self.half_width
        text = f"{mean:{'+' if sign else ''}.{scale.decimals}f}"
        return text if math.isnan(half_width) else f"{text} ± {half_width:.{scale.decimals}f}"
