"""Plots of one run: results, training and communication.

Each ``plot_...`` function draws into axes. Failed rounds and unknown values are gaps.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from pydantic import ValidationError

from mdc_flower.common.shown_metrics import OF_A_CLASSIFICATION, ShownMetric, selecting
from mdc_flower.reports.plotting import (
    DARK,
    GREEN,
    LIGHT,
    MIDDLE,
    LineEnd,
    finish,
    finish_log,
    label_ends,
    png,
)
from mdc_flower.reports.series import (
    History,
    completed,
    metric_series,
    recalibrated_series,
    unit,
    work,
    work_done,
)
from mdc_flower.reports.units import byte_scale
from strategies.method.round_plan import RoundPlan

POINTS_PER_CYCLE = 40
STAR: Mapping[str, Any] = {
    "marker": "*",
    "markersize": 11,
    "markerfacecolor": "white",
    "linestyle": "",
    "zorder": 3,
}
LOOKS: Mapping[str, Mapping[str, Any]] = {
    "test": {"color": DARK, "marker": "o", "linestyle": "-"},
    "validation": {"color": MIDDLE, "marker": "s", "linestyle": "--"},
    "sites, validation": {"color": GREEN, "marker": "d", "linestyle": "-."},
    "sites, training": {"color": LIGHT, "marker": "", "linestyle": ":"},
    "test, recalibrated": {"color": DARK, **STAR},
    "validation, recalibrated": {"color": MIDDLE, **STAR},
    "sites, validation, recalibrated": {"color": GREEN, **STAR},
}
"""Styles that distinguish the curves, in grayscale too."""

MANY_POINTS = 60
WIDTH = 6.4


def draw_run(
    history: History,
    recalibration: Mapping[str, Any] | None = None,
    metrics: Sequence[ShownMetric] = OF_A_CLASSIFICATION,
) -> bytes:
    """Return a PNG of a run: main metric, learning rate and relative change over its local work.

    Parameters
    ----------
    recalibration
        The summary's entry on the recalibration of the final model; None if there was none.
    metrics
        The run's metrics; the one that selects the best model is drawn.
    """
    figure = Figure(figsize=(8, 7), layout="constrained")
    score, rate, change = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    plot_metric(score, history, selecting(metrics), recalibration or {})
    score.set(title="Global model after each round", xlabel="")
    plot_learning_rate(rate, history)
    rate.set_xlabel("")
    plot_relative_change(change, history)
    return png(figure)


def draw_metric(history: History, metric: ShownMetric, recalibration: Mapping[str, Any]) -> Figure:
    """Return the curves of a metric, with the points of the recalibrated model."""
    figure, axes = _single()
    plot_metric(axes, history, metric, recalibration)
    return figure


def draw_learning_rate(history: History) -> Figure:
    """Return the learning rate over the local work."""
    figure, axes = _single()
    plot_learning_rate(axes, history)
    return figure


def draw_local_work(history: History) -> Figure:
    """Return the local epochs (or steps) of each round."""
    figure, axes = _single()
    values, edges = [work(line) for line in history], _edges(history)
    axes.stairs(values, edges, fill=True, color=DARK, alpha=0.25)
    axes.stairs(values, edges, color=DARK)
    axes.set(xlabel="round", ylabel=f"{unit(history)} per round", ylim=(0, None))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _rounds(axes)
    return figure


def draw_relative_change(history: History, threshold: float | None = None) -> Figure:
    """Return how far each round moved the global model.

    Parameters
    ----------
    threshold
        Value at or below which the length of a round doubles; None if it does not double.
    """
    figure, axes = _single()
    if threshold:
        axes.axhline(threshold, color=MIDDLE, linestyle="--", linewidth=1)
        axes.annotate(
            f"{unit(history)} double below",
            (0.99, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=MIDDLE,
            fontsize=8,
        )
    plot_relative_change(axes, history)
    return figure


def draw_bytes(history: History) -> Figure:
    """Return the model bytes of each round: sent bytes above the axis, received bytes below."""
    figure, axes = _single()
    lines = completed(history)
    largest = max(max(line["sent_bytes"], line["received_bytes"]) for line in lines)
    scale, name = byte_scale(largest)
    edges = _edges(history)
    for key, sign, color, hatch, text in (
        ("sent_bytes", 1, DARK, None, "sent to the sites"),
        ("received_bytes", -1, MIDDLE, "///", "received from the sites"),
    ):
        values = [sign * line[key] / scale for line in lines]
        axes.stairs(values, edges, fill=True, facecolor=color, alpha=0.25)
        axes.stairs(values, edges, fill=bool(hatch), facecolor="none", hatch=hatch, edgecolor=color)
        axes.annotate(
            text,
            (0.01, 0.98 if sign > 0 else 0.02),
            xycoords="axes fraction",
            va="top" if sign > 0 else "bottom",
            color=color,
        )
    limit = 1.25 * max(largest / scale, 1e-9)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set(xlabel="round", ylabel=f"model bytes per round ({name})", ylim=(-limit, limit))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    _rounds(axes)
    return figure


def plot_metric(
    axes: Axes, history: History, metric: ShownMetric, recalibration: Mapping[str, Any]
) -> None:
    """Plot a metric of the global model at the coordinator and at the sites.

    A star marks the value after the BatchNorm statistics were recomputed (after the last round).
    """
    ends = []
    curves = metric_series(history, metric.name)
    for curve in [*curves, *recalibrated_series(history, recalibration, metric.name)]:
        look = {"markersize": 4, **LOOKS[curve.name]}
        if len(curve.done) > MANY_POINTS:
            look["marker"] = ""
        axes.plot(curve.done, curve.values, **look)
        last = np.flatnonzero(~np.isnan(curve.values))[-1]
        ends.append(LineEnd(curve.done[last], curve.values[last], curve.name, look["color"]))
    _span(axes, history)
    axes.set_ylim(*axes.get_ylim())
    label_ends(axes, ends)
    axes.set(xlabel=unit(history), ylabel=metric.axis)
    finish(axes)


def plot_learning_rate(axes: Axes, history: History) -> None:
    """Plot the learning rate of the round plans."""
    plot_plans(axes, [plan_of(line) for line in history], [work(line) for line in history])
    _span(axes, history)
    axes.set(xlabel=unit(history), ylabel="learning rate")


def plot_plans(axes: Axes, plans: Sequence[RoundPlan | None], lengths: Sequence[float]) -> None:
    """Plot the learning rate of consecutive rounds over their local work; None is a gap."""
    ends = list(accumulate(lengths))
    progress = np.linspace(0, 1, POINTS_PER_CYCLE)
    for plan, length, end in zip(plans, lengths, ends, strict=True):
        if plan is not None:
            rates = [plan.lr_at(float(p)) for p in progress]
            axes.plot(end + (progress - 1) * length, rates, color=DARK)
    for end in ends[:-1] if len(ends) <= MANY_POINTS else ():
        axes.axvline(end, color=LIGHT, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, None)
    finish(axes)


def plot_relative_change(axes: Axes, history: History) -> None:
    """Plot how far each round moved the global model, on a logarithmic axis."""
    # A logarithmic axis cannot show 0, so a round that changed nothing is a gap too.
    changes = [line.get("relative_change") or np.nan for line in history]
    marker = "o" if len(history) <= MANY_POINTS else ""
    axes.semilogy(work_done(history), changes, marker=marker, markersize=4, color=DARK)
    _span(axes, history)
    axes.set(xlabel=unit(history), ylabel="relative change")
    finish_log(axes)


def plan_of(line: Mapping[str, Any]) -> RoundPlan | None:
    """Return a round's plan; None if another version wrote it in another format."""
    try:
        return RoundPlan.recorded(line["plan"])
    except ValidationError:
        return None


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    return figure, figure.subplots()


def _span(axes: Axes, history: History) -> None:
    """Set the same x limits in all plots: from 0 to the work done."""
    end = sum(map(work, history)) or 1
    axes.set_xlim(-0.02 * end, 1.02 * end)


def _edges(history: History) -> list[float]:
    """Return the edges of the bars, one bar per round."""
    first = history[0]["round"] - 0.5
    return [first + index for index in range(len(history) + 1)]


def _rounds(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    finish(axes)
