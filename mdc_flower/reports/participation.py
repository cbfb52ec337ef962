"""Participation of the sites in each round, as a grid and as a list of incidents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mdc_flower.reports.plotting import DARK, GREEN, MIDDLE, shortened
from mdc_flower.reports.series import History, completed

ROW_HEIGHT = 0.24
"""Height of a site's row, in inches."""

WIDTH = 12.0
SMALLEST = 5.0
"""Minimum marker size for incidents, in points: visible among hundreds of rounds."""


class SiteOutcome(Enum):
    """Outcome of one round for one site: description, marker, and whether the marker is filled."""

    TOOK_PART = ("took part", "s", True)
    ASKED_AGAIN = ("took part when asked again", "D", True)
    DROPPED = ("dropped", "X", True)
    LATE = ("answered too late", "^", False)
    MISSING = ("not online", "o", False)
    UNKNOWN = ("unknown", "", False)

    @property
    def words(self) -> str:
        """Return the description."""
        return self.value[0]


COLORS = {
    SiteOutcome.TOOK_PART: DARK,
    SiteOutcome.ASKED_AGAIN: GREEN,
    SiteOutcome.DROPPED: "#b3261e",
    SiteOutcome.LATE: MIDDLE,
    SiteOutcome.MISSING: "#6a6a6a",
}


@dataclass(frozen=True)
class Incident:
    """One irregularity; ``site`` is empty if it concerns the whole round."""

    round: int
    site: str
    what: str
    reason: str = ""


def outcome_of(line: Mapping[str, Any], site: str, late: bool = False) -> SiteOutcome:
    """Return the outcome of a round for a site.

    Parameters
    ----------
    line
        The round's completed history line.
    late
        Whether the site's reply to this round arrived after the coordinator had stopped waiting.
    """
    if site in line["participants"]:
        return SiteOutcome.ASKED_AGAIN if site in line["asked_again"] else SiteOutcome.TOOK_PART
    if late:
        return SiteOutcome.LATE
    if site in line["dropped"]:
        return SiteOutcome.DROPPED
    return SiteOutcome.MISSING if site in line["missing"] else SiteOutcome.UNKNOWN


def outcomes(history: History, sites: Sequence[str]) -> dict[tuple[int, str], SiteOutcome]:
    """Return the outcome of each round for each site, by round number and site name."""
    lines = completed(history)
    # A late reply is recorded in a later round, with the number of the round that it answers.
    late = {(number, site) for line in lines for site, number in line["late"].items()}
    return {
        (line["round"], site): outcome_of(line, site, (line["round"], site) in late)
        for line in lines
        for site in sites
    }


def draw_participation(history: History, sites: Sequence[str]) -> Figure:
    """Return a grid of rounds and sites, with a marker for each outcome."""
    grid = outcomes(history, sites)
    shown = [outcome for outcome in COLORS if outcome in grid.values()]
    height = 1.1 + ROW_HEIGHT * len(sites)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    rows = {site: row for row, site in enumerate(sites)}
    size = min(7.0, 560 / max(len(history), 1))
    for outcome in shown:
        _, marker, filled = outcome.value
        places = [place for place, what in grid.items() if what is outcome]
        axes.plot(
            [number for number, _ in places],
            [rows[site] for _, site in places],
            linestyle="",
            marker=marker,
            markersize=size if outcome is SiteOutcome.TOOK_PART else max(size, SMALLEST),
            color=COLORS[outcome],
            markerfacecolor=COLORS[outcome] if filled else "none",
            label=outcome.words,
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
    """Return all irregularities, in order of rounds; within a round, by kind."""
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
        found += [Incident(number, site, "joined") for site in line.get("joined", [])]
        found += [
            Incident(number, site, "began anew", "it had lost its optimizer's state")
            for site in line.get("began_anew", [])
        ]
        found += [
            Incident(number, site, "answered too late", f"reply to round {answered}")
            for site, answered in line["late"].items()
        ]
    return found
