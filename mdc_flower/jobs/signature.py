"""The signature of a job: what coordinator and sites must agree on."""

from collections.abc import Mapping
from typing import Any

from mdc_flower.training.job import Job
from strategies.common.errors import ConfigError
from strategies.exchange.metrics import Metric


def signature_of(job: Job) -> dict[str, str]:
    """Return a job's signature as text: its metrics, and what its method ``signature`` adds.

    Raises
    ------
    ConfigError
        If it adds something that is not a name with a text, a number or a bool.
    """
    given: Any = getattr(job, "signature", dict)()
    _check(given)
    metrics = {f"metric {metric.name}": _described(metric) for metric in job.metrics}
    return {**{name: str(value) for name, value in given.items()}, **metrics}


def _described(metric: Metric) -> str:
    """Return what decides which values a site may send, and what they mean."""
    parts = [
        f"{metric.better} is better",
        f"from {metric.low} to {metric.high}",
        f"{metric.size} sums of {metric.sums!r}" if metric.size else "a value",
    ]
    if metric.size:
        parts.append(f"per example from {metric.per_example[0]} to {metric.per_example[1]}")
    return ", ".join([*parts, "in training too"] if metric.in_training else parts)


def _check(given: object) -> None:
    usable = isinstance(given, Mapping) and all(
        isinstance(name, str) and isinstance(value, str | int | float)
        for name, value in given.items()
    )
    if not usable:
        raise ConfigError(
            "the job's signature cannot be compared",
            where="job, signature",
            got=given,
            expected="names with texts, numbers or bools; use a digest for anything larger",
        )
