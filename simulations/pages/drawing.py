"""Draw a comparison's tables and pictures from its two files, and from nothing else.

A picture says in its metadata of which results it is, so that one of others can be told.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from mdc_flower.reports.plotting import png
from simulations.figures.curves import plot_curves, plot_frontier
from simulations.figures.panels import draw_panels
from simulations.results.result_files import COMPARISON, RESULTS, Results, read_results
from simulations.results.tables import csv_table, markdown_table, tuning_table
from strategies.common.files import write_atomically

TABLE, TUNING_TABLE, CSV_TABLE = "table.md", "tuning.md", "table.csv"
CURVES, FRONTIER = "curves.png", "frontier.png"

DRAWN_FROM = "Results-SHA256"
"""Key of a picture's metadata: the `results_digest` of what it was drawn from."""


def draw_comparison(folder: Path, into: Path | None = None) -> str:
    """Write a comparison's tables and pictures; return the table as Markdown.

    Parameters
    ----------
    folder
        Where its two files are.
    into
        Folder to write into; the same by default.
    """
    results, into = read_results(folder), into or folder
    table = markdown_table(results)
    files = {TABLE: table, CSV_TABLE: csv_table(results), TUNING_TABLE: tuning_table(results)}
    for name, content in files.items():
        if content:
            write_atomically(into / name, content.encode())
    draw_pictures(folder, results, into)
    return table


def draw_pictures(folder: Path, results: Results, into: Path) -> None:
    """Draw the pictures of the results in a folder; see `draw_comparison`."""
    for name, plot in ((CURVES, plot_curves), (FRONTIER, plot_frontier)):
        write_picture(into / name, draw_panels(plot, [results], width=8, height=4.8), [folder])


def write_picture(path: Path, figure: Figure, folders: Iterable[Path]) -> None:
    """Write a picture that was drawn from the results in these folders."""
    metadata = {DRAWN_FROM: results_digest(folders)}
    write_atomically(path, png(figure, dpi=130, metadata=metadata))


def results_digest(folders: Iterable[Path]) -> str:
    """Return the SHA-256 of the results in these folders, in hex."""
    digest = hashlib.sha256()
    for folder in folders:
        for name in (COMPARISON, RESULTS):
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()
