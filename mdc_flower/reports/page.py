"""A page to read and print: plain data, and the one function that makes HTML of it.

The page is one file that asks for nothing: it holds its pictures, and there is no script.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from mdc_flower.reports.plotting import svg_uri


@dataclass(frozen=True)
class Picture:
    """A figure with its title, what it says in words, and a note below it.

    Attributes
    ----------
    name : str
        Unique on the page, of letters and hyphens.
    title : str
        Stands above the figure.
    figure : Figure
        A picture of matplotlib's.
    label : str
        What someone who does not see it is told.
    note : str
        How it is to be read.
    wide : bool
        Whether it takes the page's whole width.
    """

    name: str
    title: str
    figure: Figure
    label: str
    note: str = ""
    wide: bool = False

    @property
    def address(self) -> str:
        """Return the address of an image that holds the figure."""
        return svg_uri(self.figure)

    @property
    def width(self) -> int:
        """Return the width at which the figure's texts have the size of other texts, in pixels."""
        return round(96 * float(self.figure.get_figwidth()))


@dataclass(frozen=True)
class Table:
    """A table; the cells are texts.

    Attributes
    ----------
    caption : str
        Stands above it.
    columns : sequence of str
        The heads.
    rows : sequence of sequence of str
        The first cell of a row names it.
    numeric : bool
        Whether all columns but the first hold numbers.
    strong : frozenset of int
        Rows to stress.
    note : str
        How it is to be read.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = False
    strong: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Listing:
    """Names and values, many of them and each of little weight."""

    caption: str
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A part of a page, under a heading: text, pictures, tables and a listing, in this order."""

    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    text: str = ""
    listing: Listing | None = None

    @property
    def empty(self) -> bool:
        """Return whether there is nothing in it."""
        return not (self.text or self.pictures or self.tables or self.listing)


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes
    ----------
    title, subtitle : str
        The head.
    highlights : sequence of (str, str)
        What is looked for first: a name, and a short value.
    facts : sequence of (str, str)
        All else that is said in a line.
    sections : sequence of Section
        The page's parts; those with nothing in them are left out.
    """

    title: str
    subtitle: str
    highlights: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def render(page: Page) -> str:
    """Return the page as HTML; equal pages give equal text."""
    environment = Environment(
        loader=PackageLoader("mdc_flower.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(page=page)
