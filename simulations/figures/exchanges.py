"""Picture of a comparison: what each exchange buys.

The metric over the number of exchanges, on a log axis. Arms whose names differ only in a number at
the end, such as ``mine-20`` and ``mine-40``, are points of one line. Training without averaging is
a horizontal line. The axis at the top is the share of what averaging after every step would
exchange.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mdc_flower.reports.plotting import LineEnd, finish, label_ends
from simulations.figures.arm_styles import family, style_of
from simulations.figures.metric_axis import show_metric
from simulations.results.result_files import ArmFacts, Results
from simulations.results.rows import AVERAGING, finals, megabytes

NUMBERED_NAME = re.compile(r",? \d+ (exchanges|rounds)$")

LEAST_GAP = 1.25
"""Least ratio between two numbers of exchanges that have a tick each."""

FAR = 3.0
"""An arm is outside the frame if its distance from the worst of the other arms is this many times
as large as the distance between those."""


@dataclass(frozen=True)
class _Reached:
    """What an arm reached with its seeds: mean, lowest and highest; and its mean exchanges."""

    mean: float
    low: float
    high: float
    exchanges: float

    @classmethod
    def of(cls, results: Results, arm: ArmFacts) -> "_Reached":
        values = np.array(list(finals(results, arm.key).values()))
        outcomes = results.outcomes[arm.key].values()
        exchanges = float(np.mean([outcome.final.exchanges for outcome in outcomes]))
        return cls(float(values.mean()), float(values.min()), float(values.max()), exchanges)


def plot_exchanges(axes: Axes, results: Results) -> None:
    """Plot the final metric over the number of exchanges.

    Bars and bands go from the lowest to the highest seed. Arms without a finite mean are left out.
    The names of arms far outside the frame have an arrow and their value.
    """
    reached = {arm.key: _Reached.of(results, arm) for arm in results.facts.arms}
    arms = [arm for arm in results.facts.arms if np.isfinite(reached[arm.key].mean)]
    averaging = [arm for arm in arms if arm.kind in AVERAGING and reached[arm.key].exchanges]
    every_step = _exchanges_of_every_step(results)
    counts = [reached[arm.key].exchanges for arm in averaging]
    axes.set_xscale("log")
    left, right = min([*counts, every_step]) / 1.5, max([*counts, every_step]) * 1.25
    axes.set_xlim(left, right)
    ends = [_plot_level(axes, arm, reached[arm.key], right) for arm in arms if arm not in averaging]
    ends += [_plot_family(axes, family, reached, right) for family in _families(averaging)]
    _limit(axes, results, [reached[arm.key] for arm in arms])
    label_ends(axes, [_inside(axes, end, results) for end in ends])
    _mark_counts(axes, [*counts, every_step], every_step)
    axes.set_xlabel("exchanges with all sites (log scale)")
    finish(axes)
    _add_shares(axes, every_step)


def _exchanges_of_every_step(results: Results) -> float:
    """Return the number of averages that averaging after every step would take.

    It follows from the bytes of the first arm that averages: all its exchanges are alike.
    """
    for arm in results.facts.arms:
        outcomes = results.outcomes[arm.key]
        exchanges = float(np.mean([outcome.final.exchanges for outcome in outcomes.values()]))
        if arm.kind in AVERAGING and exchanges:
            return arm.per_step_bytes / 1e6 / (megabytes(outcomes) / exchanges)
    return 1.0


def _families(arms: Sequence[ArmFacts]) -> list[list[ArmFacts]]:
    """Return the arms in groups that are drawn as one line."""
    groups: dict[str, list[ArmFacts]] = {}
    for arm in arms:
        groups.setdefault(family(arm.key), []).append(arm)
    return list(groups.values())


def _plot_level(axes: Axes, arm: ArmFacts, one: _Reached, right: float) -> LineEnd:
    """Plot an arm without averaging as a horizontal line; return where its name belongs."""
    style = style_of(arm.key)
    axes.axhspan(one.low, one.high, color=style.color, alpha=0.08, linewidth=0)
    axes.axhline(one.mean, color=style.color, linestyle=style.line, linewidth=1.2)
    return LineEnd(right, one.mean, arm.name, style.color)


def _plot_family(
    axes: Axes, arms: Sequence[ArmFacts], reached: dict[str, _Reached], right: float
) -> LineEnd:
    """Plot the points of a line; return where its name belongs."""
    style = style_of(arms[0].key)
    points = sorted((reached[arm.key] for arm in arms), key=lambda one: one.exchanges)
    means = np.array([one.mean for one in points])
    errors: Any = [means - [one.low for one in points], [one.high for one in points] - means]
    axes.errorbar(
        [one.exchanges for one in points],
        means,
        yerr=errors,
        color=style.color,
        marker=style.marker or "o",
        markersize=6,
        linewidth=1.4,
        elinewidth=1.2,
        capsize=2.5,
    )
    name = arms[0].name if len(arms) == 1 else NUMBERED_NAME.sub("", arms[0].name)
    return LineEnd(right, float(means[-1]), name, style.color)


def _limit(axes: Axes, results: Results, reached: Sequence[_Reached]) -> None:
    """Show all seeds of all arms, except those of arms that are far worse than the others."""
    if not reached:
        return
    sign = 1.0 if results.facts.metric.better == "max" else -1.0
    ordered = sorted(reached, key=lambda one: -sign * one.mean)
    while len(ordered) > 2 and _is_far(ordered):
        ordered.pop()
    low, high = min(one.low for one in ordered), max(one.high for one in ordered)
    margin = 0.06 * (high - low) or 0.01
    show_metric(axes, results.facts, low - margin, high + margin)


def _is_far(ordered: Sequence[_Reached]) -> bool:
    """Return whether the last of these, from the best to the worst, is far from the others."""
    best, worst, last = ordered[0].mean, ordered[-2].mean, ordered[-1].mean
    return abs(last - worst) > FAR * abs(worst - best) > 0


def _inside(axes: Axes, end: LineEnd, results: Results) -> LineEnd:
    """Return where a name belongs; outside the frame, at its edge with an arrow and the value."""
    low, high = axes.get_ylim()
    if low <= end.y <= high:
        return end
    arrow, edge = ("\u2193", low) if end.y < low else ("\u2191", high)
    value = results.facts.metric.cell(end.y)
    return replace(end, y=edge, name=f"{arrow} {end.name}, {value}")


def _mark_counts(axes: Axes, counts: Sequence[float], every_step: float) -> None:
    """Put a tick at each number of exchanges that is far enough from the one before."""
    ticks: list[float] = []
    for count in sorted(set(counts)):
        if not ticks or count / ticks[-1] >= LEAST_GAP:
            ticks.append(count)

    def name(value: float, _: object) -> str:
        return "every\nstep" if np.isclose(value, every_step) else f"{value:.3g}"

    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(name))


def _add_shares(axes: Axes, every_step: float) -> None:
    """Add an axis at the top with the share of per-step traffic."""

    def share(exchanges: Any) -> Any:
        return 100 * exchanges / every_step

    def exchanges(share: Any) -> Any:
        return share * every_step / 100

    top = axes.secondary_xaxis("top", functions=(share, exchanges))
    top.set_xlabel("share of the bytes of averaging after every step")
    top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    top.xaxis.set_minor_locator(NullLocator())
