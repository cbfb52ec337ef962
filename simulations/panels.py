"""Several comparisons side by side, each drawn the same way."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulations.results_files import Results


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
        Draws a comparison into axes, as `simulations.figures.plot_curves` does.
    columns
        Most panels in a row.
    width, height
        Of a panel, in inches.
    """
    columns = min(columns, len(comparisons))
    rows = math.ceil(len(comparisons) / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, results in zip(grid, comparisons, strict=False):
        plot(axes, results)
        axes.set_title(results.facts.name, loc="left", fontsize=10)
    for axes in grid[len(comparisons) :]:
        axes.remove()
    return figure
