"""Picture of a comparison: what each exchange buys.

The metric over the number of exchanges, on a log axis. Arms whose names differ only in a number at
the end, such as ``mine-20`` and ``mine-40``, are points of one line. Training without averaging is
a horizontal line. The axis at the top is the share of what averaging after every step would
exchange.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mdc_flower.reports.plotting import LineEnd, finish, label_ends
from simulations.results.result_files import ArmFacts, Results
from simulations.results.rows import AVERAGING, finals, megabytes

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
YARDSTICK = "0.35"

NUMBERED = re.compile(r"-\d+$")
NUMBERED_NAME = re.compile(r",? \d+ (exchanges|rounds)$")

LEAST_GAP = 1.25
"""Least ratio between two numbers of exchanges that have a tick each."""


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
    """
    reached = {arm.key: _Reached.of(results, arm) for arm in results.facts.arms}
    arms = [arm for arm in results.facts.arms if np.isfinite(reached[arm.key].mean)]
    averaging = [arm for arm in arms if arm.kind in AVERAGING and reached[arm.key].exchanges]
    every_step = _exchanges_of_every_step(results)
    counts = [reached[arm.key].exchanges for arm in averaging]
    axes.set_xscale("log")
    left, right = min([*counts, every_step]) / 1.5, max([*counts, every_step]) * 1.25
    axes.set_xlim(left, right)
    ends: list[LineEnd] = []
    for index, arm in enumerate(one for one in arms if one not in averaging):
        one, dash = reached[arm.key], DASHES[index % len(DASHES)]
        axes.axhspan(one.low, one.high, color=YARDSTICK, alpha=0.08, linewidth=0)
        axes.axhline(one.mean, color=YARDSTICK, linestyle=dash, linewidth=1.2)
        ends.append(LineEnd(right, one.mean, arm.name, YARDSTICK))
    for index, family in enumerate(_families(averaging)):
        ends.append(_plot_family(axes, family, reached, index, right))
    _limit(axes, results, [reached[arm.key] for arm in arms])
    label_ends(axes, ends)
    _mark_counts(axes, [*counts, every_step], every_step)
    split, metric = results.facts.split, results.facts.metric
    axes.set(xlabel="exchanges with all sites (log scale)", ylabel=f"{split} {metric.axis}")
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
        groups.setdefault(NUMBERED.sub("", arm.key), []).append(arm)
    return list(groups.values())


def _plot_family(
    axes: Axes,
    family: Sequence[ArmFacts],
    reached: dict[str, _Reached],
    index: int,
    right: float,
) -> LineEnd:
    """Plot the points of a line; return where its name belongs."""
    points = sorted((reached[arm.key] for arm in family), key=lambda one: one.exchanges)
    means = np.array([one.mean for one in points])
    errors: Any = [means - [one.low for one in points], [one.high for one in points] - means]
    color = f"C{index}"
    axes.errorbar(
        [one.exchanges for one in points],
        means,
        yerr=errors,
        color=color,
        marker=MARKERS[index % len(MARKERS)],
        markersize=6,
        linewidth=1.4,
        elinewidth=1.2,
        capsize=2.5,
    )
    name = family[0].name if len(family) == 1 else NUMBERED_NAME.sub("", family[0].name)
    return LineEnd(right, float(means[-1]), name, color)


def _limit(axes: Axes, results: Results, reached: Sequence[_Reached]) -> None:
    if not reached:
        return
    low, high = min(one.low for one in reached), max(one.high for one in reached)
    margin = 0.06 * (high - low) or 0.01
    is_share = results.facts.metric.unit == "%"
    axes.set_ylim(low - margin, min(1.005, high + margin) if is_share else high + margin)


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
