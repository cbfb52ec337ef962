"""The y-axis of the metric by which arms are compared."""

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from simulations.results.result_files import Facts

HIGHEST_SHARE = 1.005
"""End of an axis of shares, which has room for a line at 1."""


def show_metric(axes: Axes, facts: Facts, low: float, high: float) -> None:
    """Set limits, label and, for a share, ticks in percent."""
    if facts.metric.unit == "%":
        high = min(HIGHEST_SHARE, high)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(low, high)
    axes.set_ylabel(f"{facts.split} {facts.metric.axis}")
