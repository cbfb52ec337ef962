"""The pictures of a comparison: accuracy over passes, and accuracy against bytes.

Arms that are to be named differ in dash and marker, not only in colour, and are named at their
ends; the others are thin and grey.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdc_flower.reports.drawing import pushed_apart
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
    finals: list[float] = []
    for arm, look in _looks(results):
        x, curves = _curves(results.outcomes[arm.key], lambda point: point.epochs, split)
        mean = curves.mean(axis=0)
        finals.append(float(mean[-1]))
        axes.plot(x, mean, **look)
        if look["zorder"] == NAMED:
            color = look["color"]
            axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15)
            ends.append((float(x[-1]), float(mean[-1]), arm.name, color))
    low = min(finals) - max(0.05, 1.5 * (max(finals) - min(finals)))
    axes.set_ylim(max(0.0, low), min(1.005, max(finals) + 0.1))
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

    Points are means with 95% intervals. What exchanges nothing is a line across, and what averaging
    after each step would exchange a line down.
    """
    split = results.facts.split
    ends: list[tuple[float, float, str, str]] = []
    for arm, look in _looks(results):
        points = [outcome.final for outcome in results.outcomes[arm.key].values()]
        accuracy = Interval.of([getattr(point, split) for point in points])
        megabytes = float(np.mean([p.sent_bytes + p.received_bytes for p in points])) / 1e6
        color, named = look["color"], look["zorder"] == NAMED
        if megabytes == 0:
            axes.axhline(accuracy.mean, color=color, linestyle="--", linewidth=1)
            x = arm.per_step_bytes / 1e6
        else:
            x = megabytes
            axes.errorbar(
                x,
                accuracy.mean,
                yerr=np.nan_to_num(accuracy.half_width),
                color=color,
                marker=look["marker"] or "P",
                markersize=5,
                capsize=3,
                zorder=look["zorder"],
            )
        if named:
            ends.append((x, accuracy.mean, arm.name, color))
    per_step = results.facts.arms[0].per_step_bytes / 1e6
    axes.axvline(per_step, color="0.5", linestyle=":", linewidth=1)
    axes.annotate(
        "averaging after each step",
        (per_step, 0.02),
        xycoords=("data", "axes fraction"),
        rotation=90,
        ha="right",
        va="bottom",
        color="0.4",
        fontsize=8,
    )
    axes.set_xscale("log")
    _label_ends(axes, ends, right=per_step * 1.3)
    axes.set(
        xlabel="exchanged between coordinator and all sites, both ways (MB, log scale)",
        ylabel=f"{split} accuracy",
    )
    _finish(axes)


NAMED, UNNAMED = 3.0, 1.0
"""How far in front an arm is drawn."""


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


def _label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], right: float | None = None
) -> None:
    """Write names at (x, y), or in a column at ``right``; pushed apart where they would collide."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    heights = pushed_apart([end[1] for end in ends], (high - low) * 0.045, high)
    for (x, y, name, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            f" {name}",
            (x, y),
            (x if right is None else right, height),
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops=(
                None if right is None else {"arrowstyle": "-", "color": color, "linewidth": 0.4}
            ),
        )
    axes.margins(x=0.02)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
