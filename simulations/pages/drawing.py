"""Draw the tables and pictures of a comparison from its two result files only.

The metadata of a picture contains a digest of its results, to detect outdated pictures.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from mdc_flower.reports.plotting import png
from simulations.figures.curves import plot_curves
from simulations.figures.exchanges import plot_exchanges
from simulations.figures.panels import draw_panels
from simulations.results.csv_tables import csv_table
from simulations.results.result_files import COMPARISON, RESULTS, Results, read_results
from simulations.results.tables import markdown_table
from simulations.results.tuning_tables import tuning_table
from strategies.common.files import write_atomically

TABLE, TUNING_TABLE, CSV_TABLE = "table.md", "tuning.md", "table.csv"
CURVES, EXCHANGES = "curves.png", "exchanges.png"

PLOTS = {CURVES: plot_curves, EXCHANGES: plot_exchanges}
"""The pictures of a comparison, by file name."""

DRAWN_FROM = "Results-SHA256"
"""Metadata key of a picture: the `results_digest` of the results it was drawn from."""


def draw_comparison(folder: Path, into: Path | None = None) -> str:
    """Write a comparison's tables and pictures; return the table as Markdown.

    Parameters
    ----------
    folder
        Folder with its two result files.
    into
        Folder to write to; ``folder`` by default.
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
    """Draw the pictures of a comparison; see `draw_comparison`."""
    for name, plot in PLOTS.items():
        write_picture(into / name, draw_panels(plot, [results], width=8, height=4.8), [folder])


def write_picture(path: Path, figure: Figure, folders: Iterable[Path]) -> None:
    """Write a picture, with the digest of the results in these folders."""
    metadata = {DRAWN_FROM: results_digest(folders)}
    write_atomically(path, png(figure, dpi=130, metadata=metadata))


def results_digest(folders: Iterable[Path]) -> str:
    """Return the SHA-256 of the results in these folders, in hex."""
    digest = hashlib.sha256()
    for folder in folders:
        for name in (COMPARISON, RESULTS):
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()
