"""The pictures of a comparison: accuracy over passes, and accuracy against bytes.

Arms that are to be named differ in dash and marker, not only in colour, and are named at their
ends; the others are thin and grey.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from mdc_flower.reports.drawing import LineEnd, pushed_apart
from simulations.outcome import Outcome, Point
from simulations.results_files import ArmFacts, Results
from simulations.tables import Interval

STYLES = ("-", "-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("", "o", "s", "^", "v", "D")
OTHERS = "0.75"


def draw_curves(results: Results) -> Figure:
    """Return accuracy over passes: means of the seeds, with bands from lowest to highest."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    plot_curves(axes, results)
    axes.set(title=results.facts.name)
    return figure


def plot_curves(axes: Axes, results: Results) -> None:
    """Plot accuracy over passes into axes."""
    split = results.facts.split
    ends: list[tuple[float, float, str, str]] = []
    finals, tops = [], []
    for arm, look in _looks(results):
        x, curves = _curves(results.outcomes[arm.key], lambda point: point.epochs, split)
        mean = curves.mean(axis=0)
        finals.append(float(mean[-1]))
        tops.append(float(mean.max()))
        axes.plot(x, mean, **look)
        if look["zorder"] == NAMED:
            color = look["color"]
            axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15)
            ends.append((float(x[-1]), float(mean[-1]), arm.name, color))
    low = max(0.0, min(finals) - max(0.05, 1.5 * (max(finals) - min(finals))))
    axes.set_ylim(low, min(1.005, max(tops) + 0.15 * (max(tops) - low)))
    _label_ends(axes, ends)
    axes.set(xlabel="passes over the data (local epochs)", ylabel=f"{split} accuracy")
    _finish(axes)


def draw_frontier(results: Results) -> Figure:
    """Return accuracy against exchanged bytes: the cost of an arm beside what it reaches."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    plot_frontier(axes, results)
    axes.set(title=results.facts.name)
    return figure


def plot_frontier(axes: Axes, results: Results) -> None:
    """Plot final accuracy against exchanged megabytes into axes.

    Points are means with 95% intervals, side by side where arms exchange as much. What exchanges
    nothing is a line across, and what averaging after each step would exchange a line down.
    """
    split = results.facts.split
    exchanged = {arm.key: _megabytes(results.outcomes[arm.key]) for arm in results.facts.arms}
    ends: list[tuple[LineEnd, ScaledTranslation | None]] = []
    reached: list[float] = []
    for arm, look in _looks(results):
        finals = [outcome.final for outcome in results.outcomes[arm.key].values()]
        accuracy = Interval.of([getattr(point, split) for point in finals])
        half_width = float(np.nan_to_num(accuracy.half_width))
        reached += [accuracy.mean - half_width, accuracy.mean + half_width]
        end = LineEnd(exchanged[arm.key], accuracy.mean, arm.name, look["color"])
        aside = None
        if end.x == 0:
            axes.axhline(accuracy.mean, color=end.color, linestyle="--", linewidth=1)
        else:
            aside = _aside(axes, arm.key, exchanged)
            axes.errorbar(
                end.x,
                accuracy.mean,
                yerr=half_width,
                color=end.color,
                marker=look["marker"] or "P",
                markersize=5,
                capsize=2,
                elinewidth=1.2,
                zorder=look["zorder"],
                transform=axes.transData + aside,
            )
        if look["zorder"] == NAMED:
            ends.append((end, aside))
    per_step = results.facts.arms[0].per_step_bytes / 1e6
    _mark_per_step(axes, per_step)
    axes.set_xscale("log")
    axes.set_xlim(min(filter(None, exchanged.values()), default=per_step) / 2, per_step * 1.5)
    margin = 0.06 * (max(reached) - min(reached)) or 0.01
    axes.set_ylim(min(reached) - margin, min(1.005, max(reached) + margin))
    _label_beside(axes, ends)
    axes.set(
        xlabel="exchanged with all sites, both ways (MB, log scale)",
        ylabel=f"{split} accuracy",
    )
    _finish(axes)


def _megabytes(by_seed: Mapping[int, Outcome]) -> float:
    finals = [outcome.final for outcome in by_seed.values()]
    return float(np.mean([point.sent_bytes + point.received_bytes for point in finals])) / 1e6


def _aside(axes: Axes, key: str, exchanged: Mapping[str, float]) -> ScaledTranslation:
    """Return how far to draw an arm beside its place, for others have the same."""
    same = [other for other, value in exchanged.items() if np.isclose(value, exchanged[key])]
    inches = STEP_ASIDE * (same.index(key) - (len(same) - 1) / 2)
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


def _label_beside(axes: Axes, ends: Sequence[tuple[LineEnd, ScaledTranslation | None]]) -> None:
    """Write names in a column beside the axes.

    Each end is a point, with its way to where it is drawn, or a line across, with None.
    """
    ends = sorted(ends, key=lambda one: one[0].y)
    gap = _label_gap(axes)
    heights = pushed_apart([end.y for end, _ in ends], gap, axes.get_ylim()[1] - gap / 2)
    for (end, aside), height in zip(ends, heights, strict=True):
        axes.annotate(
            end.name,
            xy=(1, end.y) if aside is None else (end.x, end.y),
            xycoords=("axes fraction", "data") if aside is None else axes.transData + aside,
            xytext=(1.04, height),
            textcoords=("axes fraction", "data"),
            color=end.color,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": end.color,
                "linewidth": 0.5,
                "relpos": (0, 0.5),
                "shrinkB": 0,
            },
        )


def _label_gap(axes: Axes) -> float:
    """Return the least distance of two names, in data units."""
    low, high = axes.get_ylim()
    inches = axes.bbox.height / axes.figure.dpi
    return float((high - low) * LABEL_HEIGHT / inches)


NAMED, UNNAMED = 3.0, 1.0
"""How far in front an arm is drawn."""

STEP_ASIDE, LABEL_HEIGHT = 0.055, 0.17
"""Inches between points with the same place, and between two names."""


def _looks(results: Results) -> list[tuple[ArmFacts, dict[str, Any]]]:
    """Return how each arm is drawn; those in front last."""
    facts = results.facts
    named = [arm for arm in facts.arms if not facts.highlight or arm.key in facts.highlight]
    others = [arm for arm in facts.arms if arm not in named]
    looks: list[tuple[ArmFacts, dict[str, Any]]] = [
        (arm, {"color": OTHERS, "linewidth": 1, "marker": ".", "markersize": 3, "zorder": UNNAMED})
        for arm in others
    ]
    looks += [
        (
            arm,
            {
                "color": f"C{index}",
                "linestyle": STYLES[index % len(STYLES)],
                "marker": MARKERS[index % len(MARKERS)],
                "markersize": 4,
                "zorder": NAMED,
            },
        )
        for index, arm in enumerate(named)
    ]
    return looks


def _curves(
    by_seed: Mapping[int, Outcome], at: Callable[[Point], int], split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return places, and accuracy by seed (rows), at the points that the seeds share.

    Seeds that share none are drawn by where they ended.
    """
    series = [
        {at(point): getattr(point, split) for point in outcome.points}
        for _, outcome in sorted(by_seed.items())
    ]
    shared = sorted(set.intersection(*(set(one) for one in series)))
    if not shared:
        ends = np.array([[one[max(one)]] for one in series])
        return np.array([max(max(one) for one in series)]), ends
    return np.array(shared), np.array([[one[place] for place in shared] for one in series])


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names at (x, y), pushed apart where they would collide."""
    ends, gap = sorted(ends, key=lambda end: end[1]), _label_gap(axes)
    heights = pushed_apart([end[1] for end in ends], gap, axes.get_ylim()[1] - gap / 2)
    for (x, y, name, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"  {name}", (x, y), (x, height), color=color, va="center", annotation_clip=False
        )
    axes.margins(x=0.02)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
