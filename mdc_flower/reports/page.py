"""A page to read and print: plain data, and one function that renders it as HTML.

The page is one self-contained file: the pictures are embedded, and it has no scripts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from mdc_flower.reports.html_templates import template
from mdc_flower.reports.plotting import svg_uri


@dataclass(frozen=True)
class Picture:
    """A figure with its title, a text alternative and a note.

    Attributes
    ----------
    name : str
        Id, unique on the page, of letters and hyphens.
    title : str
        Text above the figure.
    figure : Figure
        A matplotlib figure.
    label : str
        Text alternative for readers who cannot see the figure.
    note : str
        Note below the figure on how to read it.
    wide : bool
        Whether the figure takes the whole width of the page.
    """

    name: str
    title: str
    figure: Figure
    label: str
    note: str = ""
    wide: bool = False

    @property
    def address(self) -> str:
        """Return the figure as a data URI."""
        return svg_uri(self.figure)

    @property
    def width(self) -> int:
        """Return the width in pixels at which the figure's text has the page's text size."""
        return round(96 * float(self.figure.get_figwidth()))


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes
    ----------
    caption : str
        Text above the table.
    columns : sequence of str
        Column headings.
    rows : sequence of sequence of str
        Rows; the first cell is the row's heading.
    numeric : bool
        Whether all columns except the first hold numbers.
    strong : frozenset of int
        Indices of the rows to emphasize.
    note : str
        Note below the table on how to read it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = False
    strong: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Listing:
    """A compact list of many names and values."""

    caption: str
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A section of a page: heading, text, pictures, tables and a listing, in this order."""

    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    text: str = ""
    listing: Listing | None = None

    @property
    def empty(self) -> bool:
        """Return whether the section has no content."""
        return not (self.text or self.pictures or self.tables or self.listing)


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes
    ----------
    title, subtitle : str
        The page's heading.
    highlights : sequence of (str, str)
        The main results: names and short values.
    facts : sequence of (str, str)
        Further names and values, one per line.
    sections : sequence of Section
        The page's sections; empty ones are left out.
    """

    title: str
    subtitle: str
    highlights: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def render(page: Page) -> str:
    """Return the page as HTML; equal pages give equal text."""
    return template("page.html").render(page=page)
