"""What every picture has in common: labels at the ends of lines, and the ways out of matplotlib."""

import io
import xml.etree.ElementTree as ET  # reads what matplotlib wrote, nothing foreign
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

DARK, MIDDLE, LIGHT, GREEN = "#12355b", "#b0531a", "#8a8a8a", "#2f7d6b"
"""Colours of pictures; curves differ in marker and dash as well."""

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HREF = f"{{{XLINK}}}href"
CSS_PIXEL = 96 / 72
"""CSS pixels a point."""


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


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an ``svg`` element for a page; equal figures give equal text.

    Parameters
    ----------
    figure
        Its texts stay texts, so that they can be found and copied.
    name
        Unique on the page; what the element is called, and what its parts' ids begin with.
    label
        What someone who does not see the picture is told.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mdc-flower"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    # Its style would hold for the whole page, and its metadata name addresses.
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _rename(element, name)
    width, _ = figure.get_size_inches() * 72 * CSS_PIXEL
    del root.attrib["width"], root.attrib["height"]
    root.attrib.update(
        {
            "id": name,
            "role": "img",
            "aria-label": label,
            "style": f"max-width: {width:.0f}px; stroke-linejoin: round; stroke-linecap: butt",
        }
    )
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return ET.tostring(root, encoding="unicode")


def _rename(element: ET.Element, prefix: str) -> None:
    """Make ids, and what refers to them, unique on a page with several pictures."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{prefix}-{value}")
        elif key == HREF:
            element.set(key, value.replace("#", f"#{prefix}-", 1))
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{prefix}-"))


def finish(axes: Axes) -> None:
    """Give axes the looks of all pictures."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def label_ends(axes: Axes, ends: Iterable[LineEnd]) -> None:
    """Write each line's name beside its end, pushed apart where lines end close together.

    The limits of y must be as they are to stay.
    """
    ends = sorted(ends, key=lambda end: _height(axes, end.y))
    heights = pushed_apart([_height(axes, end.y) for end in ends], gap=0.075, top=1.0)
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
