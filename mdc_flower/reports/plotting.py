"""Helpers for all plots: style, labels at the ends of lines, and export as PNG or SVG."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.optimize import isotonic_regression

DARK, MIDDLE, LIGHT, GREEN = "#12355b", "#b0531a", "#8a8a8a", "#2f7d6b"
"""Plot colors; curves also differ in marker and dash."""

LABEL_INCHES = 0.17
"""Minimum distance between two labels beside a plot, in inches."""


@dataclass(frozen=True)
class LineEnd:
    """The last point of a line, with the line's name and color."""

    x: float
    y: float
    name: str
    color: str


def png(figure: Figure, dpi: int = 120, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a figure as PNG, with the metadata as text fields of the file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def svg_uri(figure: Figure) -> str:
    """Return a figure as a data URI with an SVG image; equal figures give equal text."""
    buffer = io.BytesIO()
    # Keep text as text: the reader's fonts have more glyphs than matplotlib's.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mdc-flower"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def finish(axes: Axes) -> None:
    """Apply the common style to axes."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def finish_log(axes: Axes) -> None:
    """Apply the common style to axes with a logarithmic y-axis, with plain numbers as ticks."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    finish(axes)


def label_ends(axes: Axes, ends: Iterable[LineEnd]) -> None:
    """Write each line's name beside its end; move names apart where lines end close together.

    Set the limits of the y-axis first: the labels do not follow a later change.
    """
    ends = sorted(ends, key=lambda end: _height(axes, end.y))
    gap = LABEL_INCHES * axes.figure.dpi / axes.bbox.height
    heights = spread_heights([_height(axes, end.y) for end in ends], gap, top=1.0)
    right = max((end.x for end in ends), default=0.0)
    for end, height in zip(ends, heights, strict=True):
        axes.annotate(
            end.name,
            (right, height),
            xycoords=("data", "axes fraction"),
            xytext=(8, 0),
            textcoords="offset points",
            color=end.color,
            va="center",
            annotation_clip=False,
            parse_math=False,
        )


def spread_heights(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Return ascending heights, moved as little as possible so that they are a gap apart.

    The sum of the squared moves is minimal, except that no height may be above ``top``.
    """
    if not heights:
        return []
    # After subtracting one gap for each height below, the heights only need to be non-decreasing.
    steps = gap * np.arange(len(heights))
    level = isotonic_regression(np.asarray(heights) - steps).x
    return [float(height) for height in np.minimum(level, top - steps[-1]) + steps]


def _height(axes: Axes, y: float) -> float:
    """Return the position of a y value as a fraction of the axes' height."""
    return float((axes.transData + axes.transAxes.inverted()).transform((0, y))[1])


def shortened(name: str, length: int = 28) -> str:
    """Return the name, cut to ``length`` characters so that it fits beside a plot."""
    return name if len(name) <= length else name[: length - 1] + "…"
