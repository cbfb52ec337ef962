"""How examples are cut into sites, drawn: the number of examples of each class at each site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mdc_flower.config import read_run_config
from mdc_flower.reports.plotting import DARK, finish
from mdc_flower.training.task import load_task
from simulations.compare.comparison_file import read_comparison
from simulations.figures.panels import panel_grid

COMPARISONS = Path(__file__).parents[1] / "comparisons"
UNUSED = "/unused"
"""A config names a run directory; nothing is written."""

MOST_TOTALS = 10
"""Sites up to which each one's number of examples is written above it."""

NARROWEST = 5.2
"""Inches that the words below a picture need."""

MARGIN = 1.2
"""Inches that the names of the classes need."""


@dataclass(frozen=True)
class ClassCounts:
    """A cut.

    Attributes
    ----------
    name : str
        Title.
    counts : ndarray of int64, shape (sites, classes)
        Training examples.
    class_names : sequence of str
        Names of the classes.
    """

    name: str
    counts: NDArray[np.int64]
    class_names: Sequence[str]


def cut(name: str, settings: Mapping[str, Any]) -> ClassCounts:
    """Return how a run with these keys of the run config cuts its data set into sites."""
    config = read_run_config({**settings, "output-dir": UNUSED})
    task = load_task(config)
    histogram = task.partition(config.num_sites).histogram(
        task.dataset.train.labels, task.dataset.num_classes
    )
    return ClassCounts(name, np.array(histogram, dtype=np.int64), task.dataset.class_names)


def comparison_cut(name: str, seed: int = 1, **changes: Any) -> ClassCounts:
    """Return how a comparison of ``simulations/comparisons`` cuts its data set.

    Parameters
    ----------
    name
        Of its file.
    seed
        Another seed, another cut.
    changes
        Keys of the run config to change, with underscores.
    """
    comparison, _ = read_comparison(COMPARISONS / f"{name}.toml")
    more = {key.replace("_", "-"): value for key, value in changes.items()}
    title = ", ".join([*comparison.name.split(", ")[-2:], f"seed {seed}"])
    return cut(title, {**comparison.config, **more, "seed": seed})


def draw_partitions(cuts: Sequence[ClassCounts], columns: int = 4) -> Figure:
    """Return a panel for each cut: the area of a disc is the number of examples.

    Areas are to a scale of each panel's own.
    """
    columns = min(columns, len(cuts))
    width = max(2.7, (NARROWEST - MARGIN) / columns)
    height = 0.24 * len(cuts[0].class_names) + 1.0
    figure, panels = panel_grid(len(cuts), columns, (width, height), (MARGIN, 0), sharey=True)
    for axes, one in zip(panels, cuts, strict=True):
        plot_partition(axes, one)
    figure.supxlabel(
        "site; area of a disc: training examples of a class; above: of all classes", fontsize=10
    )
    return figure


def plot_partition(axes: Axes, one: ClassCounts) -> None:
    """Plot a cut into axes: sites to the right, classes downwards."""
    num_sites, num_classes = one.counts.shape
    site, label = np.nonzero(one.counts)
    counts = one.counts[site, label]
    # Points: discs of neighbours must not touch, however many sites there are.
    diameter = min(15.0, 150.0 / num_sites)
    area = diameter**2 * counts / one.counts.max()
    axes.scatter(site, label, s=area, color=DARK, linewidths=0)
    totals = one.counts.sum(axis=1)
    if num_sites <= MOST_TOTALS:
        size = 8 if num_sites <= 6 else 6
        for place, total in enumerate(totals):
            axes.annotate(
                f"{total:,}", (place, -0.75), ha="center", va="bottom", fontsize=size, color="0.35"
            )
    axes.set_title(f"{one.name}\n", loc="left", fontsize=10)
    axes.set_xlim(-0.6, num_sites - 0.4)
    axes.set_ylim(num_classes - 0.4, -0.8)
    axes.set_yticks(range(num_classes), one.class_names)
    axes.set_xticks(range(num_sites) if num_sites <= MOST_TOTALS else range(0, num_sites, 5))
    finish(axes)
    axes.tick_params(length=0)
    axes.grid(alpha=0.15)
