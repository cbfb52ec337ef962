"""Picture of a comparison: its metric over passes over the data."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from mdc_flower.common.shown_metrics import ShownMetric
from mdc_flower.reports.plotting import LineEnd, finish, label_ends
from simulations.figures.arm_styles import style_of
from simulations.figures.metric_axis import show_metric
from simulations.results.outcome import Outcome
from simulations.results.result_files import Results

WIDE, THIN = 1.8, 0.9
"""Widths of the lines of highlighted and other arms."""


def plot_curves(axes: Axes, results: Results) -> None:
    """Plot the metric over passes: the mean over seeds.

    Highlighted arms have a band from the lowest to the highest seed. A curve begins where it enters
    the frame: bad values at the beginning are left out. An arm that ends with no finite value is
    not shown.
    """
    facts = results.facts
    split, metric = facts.split, facts.metric
    curves = {arm.key: _curves(results.outcomes[arm.key], split, metric.name) for arm in facts.arms}
    all_means = {key: by_seed.mean(axis=0) for key, (_, by_seed) in curves.items()}
    shown = [arm for arm in facts.arms if np.isfinite(all_means[arm.key][-1])]
    means = [all_means[arm.key] for arm in shown]
    if not shown:
        return
    low, high = _limits(metric, [mean[np.isfinite(mean)] for mean in means])
    ends = []
    for arm, mean in zip(shown, means, strict=True):
        x, by_seed = curves[arm.key]
        style, is_named = style_of(arm.key), not facts.highlight or arm.key in facts.highlight
        axes.plot(
            x,
            np.where((mean >= low) & (mean <= high), mean, np.nan),
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markersize=4 if is_named else 3,
            linewidth=WIDE if is_named else THIN,
            zorder=3 if is_named else 2,
        )
        if is_named:
            band = np.clip([by_seed.min(axis=0), by_seed.max(axis=0)], low, high)
            axes.fill_between(x, *band, color=style.color, alpha=0.12, linewidth=0)
        ends.append(LineEnd(float(x[-1]), float(mean[-1]), arm.name, style.color))
    show_metric(axes, facts, low, high)
    axes.margins(x=0.02)
    label_ends(axes, ends)
    axes.set_xlabel(_work(results))
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
    return low, high


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
