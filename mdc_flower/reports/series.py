"""Series of metrics over local work, from the lines of a history."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from strategies.method.round_plan import in_epochs, units_of
from strategies.storage.round_record import RoundRecord

History = Sequence[Mapping[str, Any]]
"""Lines of ``history.jsonl``, one per round."""

UNKNOWN = asdict(RoundRecord(0, {}))


@dataclass(frozen=True)
class Series:
    """A named curve; ``done`` is the local work done at each value."""

    name: str
    done: Sequence[int | float]
    values: Sequence[float]


def completed(history: History) -> list[dict[str, Any]]:
    """Return the lines with all fields; fields that an earlier version did not write are empty."""
    return [{**UNKNOWN, **line} for line in history]


def units(line: Mapping[str, Any]) -> int:
    """Return the length of one round in the unit of its plan: epochs, parts of one, or steps."""
    return units_of(line["plan"])


def work(line: Mapping[str, Any]) -> int | float:
    """Return the local epochs (or steps) of one round."""
    return _shown(line, units(line))


def work_done(history: History) -> list[int | float]:
    """Return the total local epochs (or steps) after each round."""
    ends = accumulate(map(units, history))
    return [_shown(line, end) for line, end in zip(history, ends, strict=True)]


def _shown(line: Mapping[str, Any], count: int) -> int | float:
    return in_epochs(count) if line["plan"].get("local_parts") else count


def in_steps(history: History) -> bool:
    """Return whether a run counts its local work in optimizer steps."""
    return bool(history) and bool(history[0]["plan"].get("local_steps"))


def unit(history: History) -> str:
    """Return the unit of a run's local work."""
    return "local steps" if in_steps(history) else "local epochs"


def site_scores(history: History, metric: str = "accuracy") -> dict[int | float, float]:
    """Return the global model's score on the sites' validation examples, by work done.

    Each round has the score of the model it started from; the last round also has the score of
    its own model.

    Parameters
    ----------
    metric
        The metric's name, such as ``accuracy`` or ``loss``.
    """
    scores: dict[int | float, float] = {}
    ends = work_done(history)
    for start, end, line in zip([0, *ends], ends, history, strict=False):
        for done, key in ((start, "start_evaluation"), (end, "site_evaluation")):
            # Histories of earlier versions lack some of these fields.
            score = line.get(key, {}).get(f"validation-{metric}")
            if score is not None:
                scores[done] = score
    return scores


def metric_series(history: History, metric: str) -> list[Series]:
    """Return the curves of a metric that have any value; rounds without a value are NaN.

    Parameters
    ----------
    metric
        The metric's name, such as ``accuracy`` or ``loss``.
    """
    lines, ends = completed(history), work_done(history)
    scores = site_scores(history, metric)
    curves = [
        Series("test", ends, [_number(line["evaluation"], f"test-{metric}") for line in lines]),
        Series(
            "validation",
            ends,
            [_number(line["evaluation"], f"validation-{metric}") for line in lines],
        ),
        Series("sites, validation", list(scores), list(scores.values())),
        Series("sites, training", ends, [_mean_trained(line, metric) for line in lines]),
    ]
    return [curve for curve in curves if not np.isnan(curve.values).all()]


def recalibrated_series(
    history: History, recalibration: Mapping[str, Any], metric: str
) -> list[Series]:
    """Return one point for each metric value of the recalibrated final model.

    Apart from the statistics it is the last round's model, so it has the same local work.

    Parameters
    ----------
    recalibration
        The summary's entry on the recalibration; empty if there was none.
    metric
        The metric's name, such as ``accuracy`` or ``loss``.
    """
    at_coordinator = recalibration.get("evaluation", {})
    at_sites = recalibration.get("site_evaluation", {})
    values = {
        "test": _number(at_coordinator, f"test-{metric}"),
        "validation": _number(at_coordinator, f"validation-{metric}"),
        "sites, validation": _number(at_sites, f"validation-{metric}"),
    }
    end = work_done(history)[-1:]
    return [
        Series(f"{name}, recalibrated", end, [value])
        for name, value in values.items()
        if end and not np.isnan(value)
    ]


def sites_of(history: History, more: Iterable[str] = ()) -> list[str]:
    """Return all sites named in the history or in ``more``; site-2 comes before site-10."""
    places = ("participants", "dropped", "errors", "missing", "asked_again", "late")
    named = {site for line in completed(history) for place in places for site in line[place]}
    return sorted(named | set(more), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _mean_trained(line: Mapping[str, Any], metric: str) -> float:
    """Return the value over all sites' training.

    Histories of earlier versions have no such value; it is then the mean over the sites.
    """
    key = f"train-{metric}"
    if key in line["training"]:
        return _number(line["training"], key)
    shared = [metrics[key] for metrics in line["participants"].values() if key in metrics]
    return float(np.mean(shared)) if shared else float("nan")


def _number(metrics: Mapping[str, Any], key: str) -> float:
    # The file stores numbers that are not finite as null.
    value = metrics.get(key)
    return float(value) if isinstance(value, int | float) else float("nan")
