"""The colour, line and marker of each arm, the same in every picture.

Arms differ in line and marker as well as in colour. Training on the pooled data is black or grey.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Any

NUMBERED = re.compile(r"-\d+$")
"""The end of the key of an arm that differs from others only in a number."""


@dataclass(frozen=True)
class ArmStyle:
    """How the curve and the points of an arm are drawn."""

    color: str
    line: Any
    marker: str


LONG_DASH, DASH_DOTS = (0, (7, 2)), (0, (5, 1, 1, 1, 1, 1))

STYLES = {
    "centralized": ArmStyle("#000000", "-", ""),
    "centralized-equal-steps": ArmStyle("#4d4d4d", "--", ""),
    "centralized-equal-time": ArmStyle("#7a7a7a", ":", ""),
    "annealed-co-learning": ArmStyle("#0072b2", "-", "o"),
    "co-learning": ArmStyle("#d55e00", "-", "s"),
    "clr-only": ArmStyle("#e8a06c", "--", "<"),
    "ile-only": ArmStyle("#8c3b00", "-.", ">"),
    "fedavg": ArmStyle("#009e73", "--", "^"),
    "flower-fedavg": ArmStyle("#66c2a5", ":", "v"),
    "fedavg-each-epoch": ArmStyle("#006d4f", DASH_DOTS, "p"),
    "fedavg-global-cosine": ArmStyle("#66a61e", "-.", "D"),
    "fedavg-global-cosine-each-epoch": ArmStyle("#3f6b12", LONG_DASH, "d"),
    "annealed-fedavg": ArmStyle("#56b4e9", "-.", "D"),
    "fedavgm": ArmStyle("#cc79a7", "-", "P"),
    "fedadam": ArmStyle("#a03070", ":", "X"),
    "fedprox": ArmStyle("#e7298a", "-.", "h"),
    "diloco": ArmStyle("#7570b3", "-", "*"),
    "qsr": ArmStyle("#b8860b", "--", "8"),
    "ensemble": ArmStyle("#8856a7", LONG_DASH, "v"),
    "one-site": ArmStyle("#a6761d", DASH_DOTS, ""),
}
"""Styles by the key of the arm, without the number at its end."""

OTHER_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#17becf")
OTHER_LINES = ("-", "--", "-.", ":")
OTHER_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def family(key: str) -> str:
    """Return the key of an arm without a number at its end."""
    return NUMBERED.sub("", key)


def style_of(key: str) -> ArmStyle:
    """Return the style of an arm; that of an unknown arm follows from its key."""
    name = family(key)
    if name in STYLES:
        return STYLES[name]
    number = zlib.crc32(name.encode())
    return ArmStyle(
        OTHER_COLORS[number % len(OTHER_COLORS)],
        OTHER_LINES[number % len(OTHER_LINES)],
        OTHER_MARKERS[number // 7 % len(OTHER_MARKERS)],
    )
