"""Draw a comparison's tables and pictures from its two files, and from nothing else."""

from pathlib import Path

from mdc_flower.reports.drawing import png
from simulations.figures import draw_curves, draw_frontier
from simulations.results_files import Results, read_results
from simulations.tables import csv_table, markdown_table, tuning_table
from strategies.journal.files import write_atomically

TABLE, TUNING_TABLE, CSV_TABLE = "table.md", "tuning.md", "table.csv"
CURVES, FRONTIER = "curves.png", "frontier.png"


def draw_comparison(folder: Path) -> str:
    """Write tables and pictures into a comparison's folder; return the table as Markdown."""
    results = read_results(folder)
    table = markdown_table(results)
    files = {TABLE: table, CSV_TABLE: csv_table(results), TUNING_TABLE: tuning_table(results)}
    for name, content in files.items():
        if content:
            write_atomically(folder / name, content.encode())
    draw_pictures(folder, results)
    return table


def draw_pictures(folder: Path, results: Results) -> None:
    """Draw a comparison's pictures into its folder."""
    write_atomically(folder / CURVES, png(draw_curves(results), dpi=130))
    write_atomically(folder / FRONTIER, png(draw_frontier(results), dpi=130))
