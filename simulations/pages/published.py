"""Generate the tables and pictures in the documentation from the committed results.

A block in a Markdown file names its content, with folders relative to the file::

    <!-- results: table results/digits -->
    <!-- /results -->

``python -m simulations.pages.published`` writes the text between the two lines; a test checks that
it is up to date. It also draws the pictures next to the results.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from simulations.pages.drawing import draw_pictures
from simulations.results.result_files import COMPARISON, Results, read_results
from simulations.results.summary import summary_table
from simulations.results.tables import markdown_table, provenance_line
from simulations.results.tuning_tables import tuning_table
from strategies.common.errors import DataError

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results"

BLOCK = re.compile(
    r"(<!-- results: (?P<kind>\S+) (?P<folders>[^>]+?) -->\n).*?(<!-- /results -->)", re.DOTALL
)

KINDS: dict[str, Callable[[Sequence[Results]], str]] = {
    "table": lambda results: f"{markdown_table(results[0])}\n{provenance_line(results[0])}",
    "tuning": lambda results: folded("Candidates of each arm", tuning_table(results[0])),
    "summary": summary_table,
}
"""Kinds of block, each with the function that makes its text from results."""


def folded(title: str, text: str) -> str:
    """Return Markdown that a reader unfolds by its title."""
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def documents(root: Path = ROOT) -> list[Path]:
    """Return the Markdown files of the documentation."""
    return [root / README.name, *sorted((root / "docs").rglob("*.md"))]


def refreshed(text: str, folder: Path) -> str:
    """Return a document with its blocks generated from the results.

    Parameters
    ----------
    text
        Markdown text of the document.
    folder
        Folder of the document.

    Raises
    ------
    DataError
        If the kind of a block is unknown or its results cannot be read.
    """

    def block(match: re.Match[str]) -> str:
        kind, folders = match["kind"], match["folders"].split()
        if kind not in KINDS:
            raise DataError(
                "no such kind of block",
                where=match[0].splitlines()[0],
                got=kind,
                expected="one of: " + ", ".join(KINDS),
            )
        results = [read_results(folder / name) for name in folders]
        return f"{match[1]}{KINDS[kind](results)}{match[4]}"

    return BLOCK.sub(block, text)


def main() -> None:
    """Update all blocks of all documents, and draw all pictures."""
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = refreshed(before, path.parent)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))
    for folder in sorted(path.parent for path in RESULTS.rglob(COMPARISON)):
        draw_pictures(folder, read_results(folder), folder)


if __name__ == "__main__":
    main()
