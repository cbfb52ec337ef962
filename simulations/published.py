"""Tables in the documentation that are made of committed results, and held to them.

A block in a Markdown file says what belongs into it, with folders relative to the file::

    <!-- results: table results/digits -->
    <!-- /results -->

``python -m simulations.published`` writes what is between the two lines; a test holds it.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from simulations.results_files import Results, read_results
from simulations.tables import markdown_table, provenance_line, summary_table, tuning_table
from strategies.errors import DataError

ROOT = Path(__file__).parent.parent

BLOCK = re.compile(
    r"(<!-- results: (?P<kind>\S+) (?P<folders>[^>]+?) -->\n).*?(<!-- /results -->)", re.DOTALL
)

KINDS: dict[str, Callable[[Sequence[Results]], str]] = {
    "table": lambda results: f"{markdown_table(results[0])}\n{provenance_line(results[0])}",
    "tuning": lambda results: tuning_table(results[0]),
    "summary": summary_table,
}
"""What can be in a block, made of the results in its folders."""


def documents(root: Path = ROOT) -> list[Path]:
    """Return the Markdown files of the documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def refreshed(text: str, folder: Path) -> str:
    """Return a document with its blocks as the results have it.

    Parameters
    ----------
    text
        Markdown.
    folder
        Where the document is.

    Raises
    ------
    DataError
        If a block asks for what is not there.
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
    """Write all blocks of all documents."""
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = refreshed(before, path.parent)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
