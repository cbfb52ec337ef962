"""`Findings`: what a survey of a data set says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SHOWN = 20


@dataclass(frozen=True)
class Counts:
    """A table of counts or other short texts; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Sample:
    """An example as the model gets it: a PNG picture, or a line of text.

    Attributes
    ----------
    of : str
        Name of its class.
    text : str
        The line of text, or the text alternative of the picture.
    png : bytes
        The picture; empty for a text.
    """

    of: str
    text: str
    png: bytes = b""


@dataclass
class Findings:
    """What a survey has found so far; its parts add to it.

    Attributes
    ----------
    problems : list of str
        What makes the data unusable, or a result on them wrong.
    notes : list of str
        What may be wrong.
    facts : list of (str, str)
        Names and values.
    tables : list of Counts
        Counts by class, mode, suffix and so on.
    samples : list of Sample
        Some examples of each class.
    stored : bool
        Whether the samples are files as they are stored, because the data set cannot be read.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Counts] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stored: bool = False

    def problem(self, what: str, where: Iterable[object] = ()) -> None:
        """Add a problem with the places where it is; nothing if there is no place."""
        self._add(self.problems, what, list(where))

    def note(self, what: str, where: Iterable[object] = ()) -> None:
        """Add a note with the places where it applies; nothing if there is no place."""
        self._add(self.notes, what, list(where))

    def lines(self) -> list[str]:
        """Return problems, notes, facts and tables as lines of text, without examples."""
        rows = [
            f"{table.caption.lower()}: "
            + ", ".join(f"{row[0]} {' / '.join(row[1:])}" for row in table.rows[:SHOWN])
            + (f" and {len(table.rows) - SHOWN} more" if len(table.rows) > SHOWN else "")
            for table in self.tables
        ]
        return [
            *(f"PROBLEM  {problem}" for problem in self.problems),
            *(f"note     {note}" for note in self.notes),
            *(f"         {name}: {value}" for name, value in self.facts),
            *(f"         {row}" for row in rows),
        ]

    def _add(self, to: list[str], what: str, where: list[object]) -> None:
        if where:
            more = f" and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
            to.append(f"{what} ({len(where)}): {', '.join(map(str, where[:SHOWN]))}{more}")


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return smallest, median and largest value as text."""
    ordered = sorted(values)
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    after = f" {unit}" if unit else ""
    return f"{low:.4g} to {high:.4g}{after}, median {middle:.4g}"
