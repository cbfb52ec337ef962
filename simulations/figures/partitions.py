"""Figures of partitions: the number of examples at each site, of each class if there are any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mdc_flower.config import CLASSIFICATION_JOB, RunConfig, read_run_config
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.jobs.task import load_task
from mdc_flower.reports.plotting import DARK, finish
from simulations.compare.course import simulated_sites
from simulations.figures.panels import panel_grid
from simulations.results.committed import split_name
from simulations.results.result_files import Results
from strategies.common.errors import ConfigError

ALL = ("examples",)
"""The only class where a job has none."""

DEFAULTS = RunConfig().to_flower()
"""The keys of this version; results of an earlier one may have others."""

UNUSED = "/unused"
"""Placeholder for the run directory in a config; nothing is written there."""

MAX_SITES_WITH_TOTALS = 10
"""Maximum number of sites for which totals are written above the sites."""

MIN_WIDTH = 5.2
"""Width of the axis label below a figure, in inches."""

MARGIN = 1.2
"""Width of the class names, in inches."""


@dataclass(frozen=True)
class ClassCounts:
    """Training examples per site and class under a partition.

    Attributes
    ----------
    name : str
        Title of the panel.
    counts : ndarray of int64, shape (sites, classes)
        Number of training examples.
    class_names : sequence of str
        Names of the classes; `ALL` if there are none.
    """

    name: str
    counts: NDArray[np.int64]
    class_names: Sequence[str]


def cut(name: str, settings: Mapping[str, Any]) -> ClassCounts:
    """Return the partition that a run with these run-config keys uses.

    Raises
    ------
    ConfigError
        If a site's examples are a stream, which has no number of examples.
    """
    config = read_run_config({**settings, "output-dir": UNUSED})
    if config.job != CLASSIFICATION_JOB:
        return ClassCounts(name, np.array([[size] for size in _sizes(config)]), ALL)
    task = load_task(config)
    histogram = task.partition(config.num_sites).histogram(
        task.dataset.train.labels, task.dataset.num_classes
    )
    return ClassCounts(name, np.array(histogram, dtype=np.int64), task.dataset.class_names)


def _sizes(config: RunConfig) -> list[int]:
    """Return the number of training examples of each site of a user's job."""
    task, sizes = load_run_task(config), []
    for number in range(config.num_sites):
        size = task.site_job(simulated_sites(config)[number]).size("train")
        if size is None:
            raise ConfigError("a stream has no number of examples", where="job", got=config.job)
        sizes.append(size)
    return sizes


def result_cut(results: Results, seed: int | None = None) -> ClassCounts:
    """Return the partition that the runs of a comparison used.

    Parameters
    ----------
    seed
        Seed of the runs; by default the first of the comparison.
    """
    seed = results.facts.seeds[0] if seed is None else seed
    config = results.facts.arms[0].config
    known = {key: value for key, value in config.items() if key in DEFAULTS}
    return cut(f"{split_name(results)[1]}, seed {seed}", {**known, "seed": seed})


def draw_partitions(cuts: Sequence[ClassCounts], columns: int = 4) -> Figure:
    """Draw one panel per partition; the area of a disc is proportional to the examples.

    Each panel has its own scale.
    """
    columns = min(columns, len(cuts))
    width = max(2.7, (MIN_WIDTH - MARGIN) / columns)
    height = 0.24 * len(cuts[0].class_names) + 1.0
    figure, panels = panel_grid(len(cuts), columns, (width, height), (MARGIN, 0), sharey=True)
    for axes, one in zip(panels, cuts, strict=True):
        plot_partition(axes, one)
    by_class = any(one.class_names is not ALL for one in cuts)
    figure.supxlabel(
        "site; disc area: training examples of a class; number above: total"
        if by_class
        else "site; disc area and number above it: training examples",
        fontsize=10,
    )
    return figure


def plot_partition(axes: Axes, one: ClassCounts) -> None:
    """Plot a partition: sites on the x axis, classes downwards on the y axis."""
    num_sites, num_classes = one.counts.shape
    site, label = np.nonzero(one.counts)
    counts = one.counts[site, label]
    # In points: neighbouring discs must not touch, whatever the number of sites.
    diameter = min(15.0, 150.0 / num_sites)
    area = diameter**2 * counts / one.counts.max()
    axes.scatter(site, label, s=area, color=DARK, linewidths=0)
    totals = one.counts.sum(axis=1)
    if num_sites <= MAX_SITES_WITH_TOTALS:
        size = 8 if num_sites <= 6 else 6
        for place, total in enumerate(totals):
            axes.annotate(
                f"{total:,}", (place, -0.75), ha="center", va="bottom", fontsize=size, color="0.35"
            )
    axes.set_title(f"{one.name}\n", loc="left", fontsize=10)
    axes.set_xlim(-0.6, num_sites - 0.4)
    axes.set_ylim(num_classes - 0.4, -0.8)
    axes.set_yticks(range(num_classes), one.class_names)
    axes.set_xticks(
        range(num_sites) if num_sites <= MAX_SITES_WITH_TOTALS else range(0, num_sites, 5)
    )
    finish(axes)
    axes.tick_params(length=0)
    axes.grid(alpha=0.15)
