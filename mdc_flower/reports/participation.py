"""Who took part in which round, and why not: as a grid, and as a list of all that went wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mdc_flower.reports.plotting import DARK, GREEN, MIDDLE, shortened
from mdc_flower.reports.series import History, completed

ROW_HEIGHT = 0.24
"""Inches a site."""

WIDTH = 12.0
SMALLEST = 5.0
"""Points of a marker of what went wrong: it is to be seen among hundreds of rounds."""


class Part(Enum):
    """What became of one site in one round: in words, as a marker, and whether it is filled."""

    TOOK_PART = ("took part", "s", True)
    ASKED_AGAIN = ("took part when asked again", "D", True)
    DROPPED = ("dropped", "X", True)
    LATE = ("answered too late", "^", False)
    MISSING = ("not online", "o", False)
    UNKNOWN = ("nothing known", "", False)

    @property
    def words(self) -> str:
        """Return what happened, in words."""
        return self.value[0]


COLORS = {
    Part.TOOK_PART: DARK,
    Part.ASKED_AGAIN: GREEN,
    Part.DROPPED: "#b3261e",
    Part.LATE: MIDDLE,
    Part.MISSING: "#6a6a6a",
}


@dataclass(frozen=True)
class Incident:
    """One thing that did not go as it should; ``site`` is empty for the round as a whole."""

    round: int
    site: str
    what: str
    reason: str = ""


def part_of(line: Mapping[str, Any], site: str, late: bool = False) -> Part:
    """Return what became of a site in a round.

    Parameters
    ----------
    line
        The round's complete line of history.
    late
        Whether the site's reply of this round came after it had been given up.
    """
    if site in line["participants"]:
        return Part.ASKED_AGAIN if site in line["asked_again"] else Part.TOOK_PART
    if late:
        return Part.LATE
    if site in line["dropped"]:
        return Part.DROPPED
    return Part.MISSING if site in line["missing"] else Part.UNKNOWN


def parts(history: History, sites: Sequence[str]) -> dict[tuple[int, str], Part]:
    """Return what became of each site in each round, by the round's number and the site's name."""
    lines = completed(history)
    # A reply that is late is noticed in a later round, and names the one that it is of.
    late = {(number, site) for line in lines for site, number in line["late"].items()}
    return {
        (line["round"], site): part_of(line, site, (line["round"], site) in late)
        for line in lines
        for site in sites
    }


def draw_participation(history: History, sites: Sequence[str]) -> Figure:
    """Return a grid of rounds and sites, with a marker for what became of each."""
    grid = parts(history, sites)
    shown = [part for part in COLORS if part in grid.values()]
    height = 1.1 + ROW_HEIGHT * len(sites)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    rows = {site: row for row, site in enumerate(sites)}
    size = min(7.0, 560 / max(len(history), 1))
    for part in shown:
        _, marker, filled = part.value
        places = [place for place, what in grid.items() if what is part]
        axes.plot(
            [number for number, _ in places],
            [rows[site] for _, site in places],
            linestyle="",
            marker=marker,
            markersize=size if part is Part.TOOK_PART else max(size, SMALLEST),
            color=COLORS[part],
            markerfacecolor=COLORS[part] if filled else "none",
            label=part.words,
        )
    numbers = [line["round"] for line in history]
    for line in completed(history):
        if line["failed"]:
            axes.axvspan(
                line["round"] - 0.5,
                line["round"] + 0.5,
                facecolor="none",
                edgecolor="0.6",
                hatch="////",
                linewidth=0,
                label="the round failed",
                zorder=0,
            )
    axes.set_yticks(list(rows.values()))
    axes.set_yticklabels([shortened(site) for site in sites], parse_math=False)
    axes.set(xlabel="round", xlim=(min(numbers) - 0.7, max(numbers) + 0.7))
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(
        loc="outside upper left", ncols=len(COLORS) + 1, frameon=False, fontsize=9, markerscale=1.0
    )
    return figure


def incidents(history: History) -> list[Incident]:
    """Return all that did not go as it should, in the order of rounds and sites."""
    found: list[Incident] = []
    for line in completed(history):
        number = line["round"]
        if line["attempts"] > 1:
            found.append(Incident(number, "", "repeated", f"{line['attempts']} attempts"))
        if line["failed"]:
            found.append(Incident(number, "", "failed", "too few updates: the run ended here"))
        found += [Incident(number, site, "dropped", why) for site, why in line["dropped"].items()]
        found += [Incident(number, site, "not online") for site in line["missing"]]
        found += [Incident(number, site, "asked again") for site in line["asked_again"]]
        found += [
            Incident(number, site, "answered too late", f"a message of round {of}")
            for site, of in line["late"].items()
        ]
    return found
