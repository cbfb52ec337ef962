"""Figures of differences from a reference arm, paired by seed, with intervals.

The reference is the first arm of a comparison. Differences of shares are in percentage points.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mdc_flower.reports.plotting import DARK, MIDDLE, finish
from simulations.results.committed import same_metric, shared_arms, split_name
from simulations.results.intervals import Interval, Scale
from simulations.results.result_files import ArmFacts, Facts, Results
from simulations.results.rows import Row, difference_unit, scale_of, table_rows
from strategies.common.errors import DataError

LIGHT = "#7a7a7a"
ARM_STYLES = (
    ("o", DARK, DARK),
    ("s", MIDDLE, "white"),
    ("^", LIGHT, LIGHT),
    ("D", DARK, "white"),
)
"""Marker, edge colour and fill colour of arms, distinguishable in greyscale."""

ROW_HEIGHT = 0.3
"""Inches per row."""

LETTERS = 11
"""Letters of an axis label per inch."""

LINE_HEIGHT = 0.2
"""Inches per further line of an axis label."""

PANEL, NAMES = 2.5, 2.3
"""Width of a panel, and of the names of the arms, in inches."""

MAX_DISTANCE = 4.0
"""Differences up to this multiple of the median difference are inside the axis limits."""

SMALLEST = 0.01
"""Least reach of an axis: one percentage point, or a hundredth of the reference's value."""

MARGIN = 0.05
"""Least margin left and right of all intervals, as a share of the least reach."""


def draw_differences(
    comparisons: Sequence[Results], arms: Sequence[str] = (), bold: str = "co-learning"
) -> Figure:
    """Draw the differences with one row per arm and one panel per comparison.

    Parameters
    ----------
    comparisons
        Results with the same reference.
    arms
        Keys of the arms to show, of those that all comparisons have; all but the reference if
        empty.
    bold
        Key of the arm to emphasize.

    Raises
    ------
    DataError
        If the comparisons have none of the arms in common.
    """
    shared = shared_arms(comparisons)
    wanted = arms or [arm.key for arm in comparisons[0].facts.arms[1:]]
    keys = [key for key in wanted if key in shared]
    if not keys:
        raise DataError(
            "the comparisons have none of these arms in common",
            where=", ".join(results.facts.name for results in comparisons),
            got=", ".join(wanted),
        )
    width = NAMES + PANEL * len(comparisons)
    texts = [_axis_label(results.facts) for results in comparisons]
    are_same = len(set(texts)) == 1
    texts = [fill(text, int(LETTERS * (width if are_same else PANEL))) for text in texts]
    height = 1.3 + ROW_HEIGHT * len(keys) + LINE_HEIGHT * max(one.count("\n") for one in texts)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(comparisons), sharey=True, squeeze=False)[0]
    for axes, results in zip(panels, comparisons, strict=True):
        _plot_column(axes, results, keys, bold)
        axes.set_title(results.facts.name.replace(", ", ",\n", 1), loc="left", fontsize=10)
    panels[0].set_yticks(range(len(keys)), [shared[key].name for key in keys])
    for label, key in zip(panels[0].get_yticklabels(), keys, strict=True):
        label.set_fontweight("bold" if key == bold else "normal")
    panels[0].set_ylim(len(keys) - 0.5, -0.5)
    if are_same:
        figure.supxlabel(texts[0], fontsize=10)
    else:
        for axes, text in zip(panels, texts, strict=True):
            axes.set_xlabel(text)
    return figure


def draw_split_costs(splits: Sequence[Results]) -> Figure:
    """Draw one row per split, with the difference between each shared arm and the reference.

    Raises
    ------
    DataError
        If the splits do not have the same metric.
    """
    same_metric(splits)
    facts = splits[0].facts
    shared = shared_arms(splits)
    arms = [arm for arm in facts.arms[1:] if arm.key in shared]
    groups = [(name, list(of)) for name, of in groupby(splits, lambda one: split_name(one)[0])]
    num_rows = len(splits) + len(groups)
    height = 1.1 + 1.5 * ROW_HEIGHT * num_rows
    figure = Figure(figsize=(8.6, height), layout="constrained")
    axes = figure.subplots()
    _zero(axes)
    labels, places = _split_rows(groups)
    for results, place in places:
        rows = _rows(results)
        scale = scale_of(facts, list(rows.values()))
        for index, arm in enumerate(arms):
            y = _dodged(place, index, len(arms))
            _plot_interval(axes, rows[arm.key].difference, y, _style(index), scale)
        reached = rows[facts.arms[0].key].score.text(scale)
        _note(axes, place, f"{reached} {facts.metric.unit}".rstrip())
    roomiest, place = min(places[: len(groups[0][1])], key=lambda one: _right_end(one[0]))
    _name_arms(axes, arms, roomiest, place)
    _note(axes, labels[0][0], f"{facts.arms[0].name}:")
    axes.set_yticks([y for y, _, _ in labels], [text for _, text, _ in labels])
    for tick, (_, _, weight) in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_fontweight(weight)
    axes.set_ylim(places[-1][1] + 0.7, -0.7)
    axes.set_xlabel(_axis_label(facts))
    _finish(axes)
    return figure


def _axis_label(facts: Facts) -> str:
    """Return what the differences are of, their unit, and whether they are better below 0."""
    unit = difference_unit(facts.metric)
    notes = ", ".join(filter(None, [unit, "below 0 is better" * (facts.metric.better == "min")]))
    what = f"{facts.split} {facts.metric.words} minus {facts.arms[0].name}"
    return f"{what}{notes and f' ({notes})'}, with 95% interval"


def _split_rows(
    groups: Sequence[tuple[str, Sequence[Results]]],
) -> tuple[list[tuple[float, str, str]], list[tuple[Results, float]]]:
    """Return labels as (height, text, font weight), and the height of each split."""
    labels: list[tuple[float, str, str]] = []
    places: list[tuple[Results, float]] = []
    for name, splits in groups:
        labels.append((float(len(labels)), name, "bold"))
        for results in splits:
            places.append((results, float(len(labels))))
            labels.append((float(len(labels)), split_name(results)[1], "normal"))
    return labels, places


def _right_end(results: Results) -> float:
    """Return the right end of the rightmost interval in a row."""
    differences = [row.difference for row in table_rows(results)[1:]]
    return max(one.mean + float(np.nan_to_num(one.half_width)) for one in differences)


def _rows(results: Results) -> dict[str, Row]:
    """Return the rows of a comparison's table by arm key."""
    return dict(zip([arm.key for arm in results.facts.arms], table_rows(results), strict=True))


def _plot_column(axes: Axes, results: Results, keys: Sequence[str], bold: str) -> None:
    """Plot the differences of one comparison; those too far away are an arrow with a number."""
    _zero(axes)
    rows = _rows(results)
    scale = scale_of(results.facts, list(rows.values()))
    smallest = _smallest(results, rows)
    distances = np.array([abs(rows[key].difference.mean) for key in keys])
    widths = np.nan_to_num([rows[key].difference.half_width for key in keys])
    reach = max(MAX_DISTANCE * float(np.median(distances)), 8 * float(np.median(widths)), smallest)
    means = np.array([rows[key].difference.mean for key in keys])
    shown = distances <= reach
    low = float(min((means - widths)[shown], default=0)) * scale.factor
    high = float(max((means + widths)[shown], default=0)) * scale.factor
    margin = max(0.08 * (max(high, 0) - min(low, 0)), MARGIN * smallest * scale.factor)
    left = min(low, 0) - margin
    for place, key in enumerate(keys):
        style = ("o", DARK, DARK) if key == bold else ("o", "0.45", "white")
        difference = rows[key].difference
        if shown[place]:
            _plot_interval(axes, difference, place, style, scale)
        else:
            axes.annotate(
                difference.text(scale, sign=True),
                (left, place),
                (24, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "->", "color": "0.45"},
            )
    axes.set_xlim(left, max(high, 0) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    _finish(axes)


def _smallest(results: Results, rows: Mapping[str, Row]) -> float:
    """Return the least reach of the axis, in the metric's own scale."""
    if results.facts.metric.unit == "%":
        return SMALLEST
    return SMALLEST * abs(rows[results.facts.arms[0].key].score.mean) or SMALLEST


def _plot_interval(
    axes: Axes, interval: Interval, y: float, style: tuple[str, str, str], scale: Scale
) -> None:
    marker, color, fill = style
    axes.errorbar(
        scale.factor * interval.mean,
        y,
        xerr=scale.factor * np.nan_to_num(interval.half_width),
        color=color,
        marker=marker,
        markersize=6,
        markerfacecolor=fill,
        elinewidth=1.4,
        capsize=2.5,
    )


def _zero(axes: Axes) -> None:
    axes.axvline(0, color="0.25", linewidth=1, linestyle="--")


def _note(axes: Axes, y: float, text: str) -> None:
    """Write a note to the right of a row."""
    axes.annotate(
        text, (1.01, y), xycoords=("axes fraction", "data"), va="center", color="0.35", fontsize=9
    )


def _name_arms(axes: Axes, arms: Sequence[ArmFacts], results: Results, place: float) -> None:
    """Write the name of each arm to the right of its interval."""
    rows = _rows(results)
    factor = scale_of(results.facts, list(rows.values())).factor
    for index, arm in enumerate(arms):
        difference = rows[arm.key].difference
        axes.annotate(
            arm.name,
            (
                factor * (difference.mean + np.nan_to_num(difference.half_width)),
                _dodged(place, index, len(arms)),
            ),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=_style(index)[1],
            fontsize=9,
        )


def _style(index: int) -> tuple[str, str, str]:
    """Return marker and colours of an arm by its number."""
    return ARM_STYLES[index % len(ARM_STYLES)]


def _dodged(place: float, index: int, count: int) -> float:
    """Return the height of one of several intervals in the same row."""
    return place + 0.36 * (index - (count - 1) / 2)


def _finish(axes: Axes) -> None:
    finish(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
