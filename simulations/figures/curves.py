"""Pictures of a comparison: its metric over passes, and against bytes.

Highlighted arms differ in line style and marker as well as in colour. Other arms are thin and grey.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from mdc_flower.common.shown_metrics import ShownMetric
from mdc_flower.reports.plotting import LineEnd, finish, label_ends
from simulations.results.intervals import Interval
from simulations.results.outcome import Outcome
from simulations.results.result_files import ArmFacts, Results
from simulations.results.rows import finals, megabytes

STYLES = ("-", "-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("", "o", "s", "^", "v", "D")
OTHER_COLOR = "0.75"

NAMED, UNNAMED = 3.0, 1.0
"""Z-orders of highlighted and other arms."""

OFFSET = 0.055
"""Inches between points that have the same position."""

HIGHEST_SHARE = 1.005
"""End of an axis of shares, which has room for a line at 1."""


def plot_curves(axes: Axes, results: Results) -> None:
    """Plot the metric over passes: the mean over seeds, with a band from lowest to highest."""
    split, metric = results.facts.split, results.facts.metric
    ends, means = [], []
    for arm, style in _styles(results):
        x, curves = _curves(results.outcomes[arm.key], split, metric.name)
        mean = curves.mean(axis=0)
        means.append(mean)
        axes.plot(x, mean, **style)
        if style["zorder"] == NAMED and np.isfinite(mean[-1]):
            color = style["color"]
            axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15)
            ends.append(LineEnd(float(x[-1]), float(mean[-1]), arm.name, color))
    # An arm that ends with no finite value is not shown.
    if shown := [mean[np.isfinite(mean)] for mean in means if np.isfinite(mean[-1])]:
        axes.set_ylim(*_limits(metric, shown))
    axes.margins(x=0.02)
    label_ends(axes, ends)
    axes.set(xlabel=_work(results), ylabel=f"{split} {metric.axis}")
    finish(axes)


def _work(results: Results) -> str:
    if results.facts.arms[0].counts_steps:
        return "optimizer steps of a site"
    return "passes over the data (local epochs)"


def _limits(metric: ShownMetric, curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the ends of the axis, between which all arms end; a bad beginning is cut off."""
    sign = 1.0 if metric.better == "max" else -1.0
    # From here on, higher is better.
    ends = [sign * float(curve[-1]) for curve in curves]
    best = max(float((sign * curve).max()) for curve in curves)
    least = 0.05 if metric.unit == "%" else 0.05 * max(map(abs, ends))
    worst = min(ends) - max(least, 1.5 * (max(ends) - min(ends)))
    if sign > 0 and min(ends) >= 0:
        worst = max(0.0, worst)
    beyond = best + 0.15 * (best - worst)
    if sign < 0 and best <= 0:
        beyond = min(0.0, beyond)
    low, high = sorted((sign * worst, sign * beyond))
    return low, min(HIGHEST_SHARE, high) if metric.unit == "%" else high


def plot_frontier(axes: Axes, results: Results) -> None:
    """Plot the final metric against exchanged megabytes.

    Points are means with 95% intervals, side by side if arms exchange the same number of bytes. An
    arm that exchanges nothing is a horizontal line. A vertical line marks the bytes that averaging
    after each step would exchange.
    """
    split, metric = results.facts.split, results.facts.metric
    exchanged = {arm.key: megabytes(results.outcomes[arm.key]) for arm in results.facts.arms}
    named: list[tuple[float, Any]] = []
    reached: list[float] = []
    for arm, style in _styles(results):
        score = Interval.of(list(finals(results, arm.key).values()))
        if not np.isfinite(score.mean):
            continue
        half_width = float(np.nan_to_num(score.half_width))
        reached += [score.mean - half_width, score.mean + half_width]
        drawn: Any
        if exchanged[arm.key] == 0:
            color, dash = style["color"], style.get("linestyle", "-")
            drawn = axes.axhline(score.mean, color=color, linestyle=dash, linewidth=1)
        else:
            drawn = axes.errorbar(
                exchanged[arm.key],
                score.mean,
                yerr=half_width,
                color=style["color"],
                linestyle="",
                marker=style["marker"] or "P",
                markersize=5,
                capsize=2,
                elinewidth=1.2,
                zorder=style["zorder"],
                transform=axes.transData + _offset(axes, arm.key, exchanged),
            )
        if style["zorder"] == NAMED:
            drawn.set_label(arm.name)
            named.append((score.mean, drawn))
    per_step = results.facts.arms[0].per_step_bytes / 1e6
    _mark_per_step(axes, per_step)
    axes.set_xscale("log")
    axes.set_xlim(min(filter(None, exchanged.values()), default=per_step) / 2, per_step * 1.5)
    if reached:
        margin = 0.06 * (max(reached) - min(reached)) or 0.01
        high = max(reached) + margin
        axes.set_ylim(
            min(reached) - margin, min(HIGHEST_SHARE, high) if metric.unit == "%" else high
        )
    handles = [drawn for _, drawn in sorted(named, key=lambda one: one[0], reverse=True)]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.set(
        xlabel="exchanged with all sites, both ways (MB, log scale)",
        ylabel=f"{split} {metric.axis}",
    )
    finish(axes)


def _offset(axes: Axes, key: str, exchanged: Mapping[str, float]) -> ScaledTranslation:
    """Return the horizontal offset of an arm, to separate arms with equal bytes."""
    same = [other for other, value in exchanged.items() if np.isclose(value, exchanged[key])]
    inches = OFFSET * (same.index(key) - (len(same) - 1) / 2)
    return ScaledTranslation(inches, 0, axes.figure.dpi_scale_trans)


def _mark_per_step(axes: Axes, megabytes: float) -> None:
    axes.axvline(megabytes, color="0.5", linestyle=":", linewidth=1)
    axes.annotate(
        "averaging after each step",
        (megabytes, 0.02),
        (-4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        color="0.4",
        fontsize=8,
    )


def _styles(results: Results) -> list[tuple[ArmFacts, dict[str, Any]]]:
    """Return the line style of each arm; arms drawn in front come last."""
    facts = results.facts
    named = [arm for arm in facts.arms if not facts.highlight or arm.key in facts.highlight]
    grey = {"color": OTHER_COLOR, "linewidth": 1, "marker": ".", "markersize": 3, "zorder": UNNAMED}
    styles: list[tuple[ArmFacts, dict[str, Any]]] = [
        (arm, grey) for arm in facts.arms if arm not in named
    ]
    for index, arm in enumerate(named):
        line, marker = STYLES[index % len(STYLES)], MARKERS[index % len(MARKERS)]
        style = {"color": f"C{index}", "linestyle": line, "marker": marker, "markersize": 4}
        styles.append((arm, {**style, "zorder": NAMED}))
    return styles


def _curves(
    by_seed: Mapping[int, Outcome], split: str, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs that all seeds have, and the values, with one row per seed.

    If the seeds have no epochs in common, return only their final points.
    """
    series = [
        {point.epochs: point.metrics(split)[metric] for point in outcome.points}
        for _, outcome in sorted(by_seed.items())
    ]
    shared = sorted(set.intersection(*map(set, series)))
    if not shared:
        return np.array([max(map(max, series))]), np.array([[one[max(one)]] for one in series])
    return np.array(shared), np.array([[one[epochs] for epochs in shared] for one in series])
