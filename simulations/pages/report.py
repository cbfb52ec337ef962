"""`mdc report`: the HTML page of a run or a comparison.

For a comparison, this also redraws its tables and pictures.
"""

from pathlib import Path

from mdc_flower.reports.page import render
from mdc_flower.reports.run_files import is_run, read_run
from mdc_flower.reports.run_page import run_page
from simulations.pages.comparison_page import comparison_page
from simulations.pages.drawing import draw_comparison
from simulations.results.result_files import COMPARISON, read_results
from strategies.common.errors import ConfigError
from strategies.common.files import write_atomically
from strategies.storage.run_directory import EVENTS, HISTORY, SUMMARY

PAGE = "report.html"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run directory or of a comparison folder; return its path.

    Parameters
    ----------
    output
        Path of the page; ``report.html`` in the folder by default. The tables and pictures of a
        comparison are written to the same folder.

    Raises
    ------
    ConfigError
        If the folder holds neither a run nor a comparison.
    DataError
        If the files of a comparison are invalid.
    """
    path = output or folder / PAGE
    if (folder / COMPARISON).is_file():
        page = comparison_page(read_results(folder))
        draw_comparison(folder, path.parent)
    elif is_run(folder):
        page = run_page(read_run(folder))
    else:
        raise ConfigError(
            "the folder holds no run and no comparison",
            where="DIR",
            got=str(folder),
            expected=f"a run directory with one of {HISTORY}, {EVENTS}, {SUMMARY}, or a comparison "
            f"folder with {COMPARISON}",
        )
    write_atomically(path, render(page).encode())
    return path
