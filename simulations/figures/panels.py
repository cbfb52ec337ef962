"""Grids of panels, and several comparisons side by side."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulations.results.result_files import Results

Sharing = bool | Literal["all", "none", "row", "col"]


def panel_grid(
    count: int,
    columns: int,
    panel: tuple[float, float],
    margin: tuple[float, float] = (0.0, 0.0),
    sharex: Sharing = False,
    sharey: Sharing = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row.

    Parameters
    ----------
    count
        Number of panels.
    columns
        Maximum number of panels in a row.
    panel, margin
        Width and height of a panel, and of the margin around the grid, in inches.
    sharex, sharey
        See `matplotlib.figure.Figure.subplots`.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (columns * panel[0] + margin[0], rows * panel[1] + margin[1])
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False).flatten()
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])


def draw_panels(
    plot: Callable[[Axes, Results], None],
    comparisons: Sequence[Results],
    columns: int = 2,
    width: float = 5.8,
    height: float = 3.8,
) -> Figure:
    """Return a figure with one panel per comparison.

    Parameters
    ----------
    plot
        Function that draws a comparison into axes, such as
        `simulations.figures.curves.plot_curves`.
    columns
        Maximum number of panels in a row.
    width, height
        Size of a panel in inches.
    """
    figure, panels = panel_grid(len(comparisons), columns, (width, height))
    for axes, results in zip(panels, comparisons, strict=True):
        plot(axes, results)
        axes.set_title(results.facts.name, loc="left", fontsize=10)
    return figure
