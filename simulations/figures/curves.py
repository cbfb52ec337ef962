"""Pictures of a comparison: accuracy over passes, and accuracy against bytes.

Highlighted arms differ in line style and marker as well as in colour. Other arms are thin and grey.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from mdc_flower.reports.plotting import LineEnd, finish, label_ends
from simulations.results.outcome import Outcome
from simulations.results.result_files import ArmFacts, Results
from simulations.results.tables import Interval

STYLES = ("-", "-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("", "o", "s", "^", "v", "D")
OTHER_COLOR = "0.75"

NAMED, UNNAMED = 3.0, 1.0
"""Z-orders of highlighted and other arms."""

OFFSET = 0.055
"""Inches between points that have the same position."""


def plot_curves(axes: Axes, results: Results) -> None:
    """Plot accuracy over passes: the mean over seeds, with a band from lowest to highest."""
    split = results.facts.split
    ends = []
    finals, tops = [], []
    for arm, style in _styles(results):
        x, curves = _curves(results.outcomes[arm.key], split)
        mean = curves.mean(axis=0)
        finals.append(float(mean[-1]))
        tops.append(float(mean.max()))
        axes.plot(x, mean, **style)
        if style["zorder"] == NAMED:
            color = style["color"]
            axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15)
            ends.append(LineEnd(float(x[-1]), float(mean[-1]), arm.name, color))
    low = max(0.0, min(finals) - max(0.05, 1.5 * (max(finals) - min(finals))))
    axes.set_ylim(low, min(1.005, max(tops) + 0.15 * (max(tops) - low)))
    axes.margins(x=0.02)
    label_ends(axes, ends)
    axes.set(xlabel="passes over the data (local epochs)", ylabel=f"{split} accuracy")
    finish(axes)


def plot_frontier(axes: Axes, results: Results) -> None:
    """Plot final accuracy against exchanged megabytes.

    Points are means with 95% intervals, side by side if arms exchange the same number of bytes. An
    arm that exchanges nothing is a horizontal line. A vertical line marks the bytes that averaging
    after each step would exchange.
    """
    split = results.facts.split
    exchanged = {arm.key: _megabytes(results.outcomes[arm.key]) for arm in results.facts.arms}
    named: list[tuple[float, Any]] = []
    reached: list[float] = []
    for arm, style in _styles(results):
        finals = [outcome.final for outcome in results.outcomes[arm.key].values()]
        accuracy = Interval.of([getattr(point, split) for point in finals])
        half_width = float(np.nan_to_num(accuracy.half_width))
        reached += [accuracy.mean - half_width, accuracy.mean + half_width]
        drawn: Any
        if exchanged[arm.key] == 0:
            color, dash = style["color"], style.get("linestyle", "-")
            drawn = axes.axhline(accuracy.mean, color=color, linestyle=dash, linewidth=1)
        else:
            drawn = axes.errorbar(
                exchanged[arm.key],
                accuracy.mean,
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
            named.append((accuracy.mean, drawn))
    per_step = results.facts.arms[0].per_step_bytes / 1e6
    _mark_per_step(axes, per_step)
    axes.set_xscale("log")
    axes.set_xlim(min(filter(None, exchanged.values()), default=per_step) / 2, per_step * 1.5)
    margin = 0.06 * (max(reached) - min(reached)) or 0.01
    axes.set_ylim(min(reached) - margin, min(1.005, max(reached) + margin))
    handles = [drawn for _, drawn in sorted(named, key=lambda one: one[0], reverse=True)]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.set(
        xlabel="exchanged with all sites, both ways (MB, log scale)",
        ylabel=f"{split} accuracy",
    )
    finish(axes)


def _megabytes(by_seed: Mapping[int, Outcome]) -> float:
    finals = [outcome.final for outcome in by_seed.values()]
    return float(np.mean([point.sent_bytes + point.received_bytes for point in finals])) / 1e6


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


def _curves(by_seed: Mapping[int, Outcome], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs that all seeds have, and the accuracies, with one row per seed.

    If the seeds have no epochs in common, return only their final points.
    """
    series = [
        {point.epochs: getattr(point, split) for point in outcome.points}
        for _, outcome in sorted(by_seed.items())
    ]
    shared = sorted(set.intersection(*map(set, series)))
    if not shared:
        return np.array([max(map(max, series))]), np.array([[one[max(one)]] for one in series])
    return np.array(shared), np.array([[one[epochs] for epochs in shared] for one in series])
