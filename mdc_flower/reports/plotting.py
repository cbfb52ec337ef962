"""What every picture has in common: labels at the ends of lines, and the ways out of matplotlib."""

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
"""Colours of pictures; curves differ in marker and dash as well."""

LABEL_INCHES = 0.17
"""Least distance between two names beside a picture."""


@dataclass(frozen=True)
class LineEnd:
    """The last point of a line, and how it is called."""

    x: float
    y: float
    name: str
    color: str


def png(figure: Figure, dpi: int = 120, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a figure as PNG, with these texts beside the picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def svg_uri(figure: Figure) -> str:
    """Return a figure as the address of an image that holds it; equal figures give equal text."""
    buffer = io.BytesIO()
    # Texts stay texts: the reader's fonts have more letters than matplotlib's.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mdc-flower"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def finish(axes: Axes) -> None:
    """Give axes the looks of all pictures."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def finish_log(axes: Axes) -> None:
    """Give axes whose y is logarithmic the looks of all pictures, with numbers as they are read."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    finish(axes)


def label_ends(axes: Axes, ends: Iterable[LineEnd]) -> None:
    """Write each line's name beside its end, pushed apart where lines end close together.

    The limits of y must be as they are to stay.
    """
    ends = sorted(ends, key=lambda end: _height(axes, end.y))
    gap = LABEL_INCHES * axes.figure.dpi / axes.bbox.height
    heights = pushed_apart([_height(axes, end.y) for end in ends], gap, top=1.0)
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


def pushed_apart(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Return ascending heights moved, as little as can be, until they are a gap apart.

    The sum of the squares of the ways is the least that there is, but that none is above the top.
    """
    if not heights:
        return []
    # Less a gap for each one below, what is to be a gap apart is only not to descend.
    steps = gap * np.arange(len(heights))
    level = isotonic_regression(np.asarray(heights) - steps).x
    return [float(height) for height in np.minimum(level, top - steps[-1]) + steps]


def _height(axes: Axes, y: float) -> float:
    """Return where a value is, as a share of the axes' height."""
    return float((axes.transData + axes.transAxes.inverted()).transform((0, y))[1])


def shortened(name: str, length: int = 28) -> str:
    """Return a name that fits beside a picture."""
    return name if len(name) <= length else name[: length - 1] + "…"
