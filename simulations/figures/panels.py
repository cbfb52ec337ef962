"""Panels in a grid; several comparisons side by side, each drawn the same way."""

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
        Of panels.
    columns
        Most panels in a row.
    panel, margin
        Width and height of a panel, and of what stands beside all of them, in inches.
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
    """Return a figure with axes for each comparison.

    Parameters
    ----------
    plot
        Draws a comparison into axes, as `simulations.figures.curves.plot_curves` does.
    columns
        Most panels in a row.
    width, height
        Of a panel, in inches.
    """
    figure, panels = panel_grid(len(comparisons), columns, (width, height))
    for axes, results in zip(panels, comparisons, strict=True):
        plot(axes, results)
        axes.set_title(results.facts.name, loc="left", fontsize=10)
    return figure
