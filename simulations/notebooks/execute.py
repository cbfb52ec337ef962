"""Execute notebooks in place, each in its own kernel: ``make notebooks``.

    python -m simulations.notebooks.execute [NOTEBOOK ...]

Executes all of ``notebooks/`` by default. Times and ids, which differ between executions, are not
written. A notebook that fails is not changed.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from simulations.pages.published import ROOT
from strategies.common.files import write_atomically

NOTEBOOKS = ROOT / "notebooks"
CELL_TIMEOUT_S = 600

Node = Any
"""A notebook or a part of one: a dictionary whose keys are also attributes."""


def read_notebook(path: Path) -> Node:
    """Read a notebook, converted to format version 4."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def execute(notebook: Node) -> Node:
    """Execute the notebook in a new kernel, and return it with its outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        # Use file sockets, so that other users of the machine cannot connect to the kernel.
        config=Config({"KernelManager": {"transport": "ipc"}}),
        timeout=CELL_TIMEOUT_S,
        record_timing=False,
        coalesce_streams=True,
    )
    # Hide progress bars of downloads and partitioners; tqdm reads this on import.
    return plain(client.execute(env={**os.environ, "TQDM_DISABLE": "1"}))


def plain(notebook: Node) -> Node:
    """Remove metadata that differs between machines or executions."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    return notebook


def write_notebook(path: Path, notebook: Node) -> None:
    """Write a notebook atomically."""
    nbformat.validate(notebook)
    text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    write_atomically(path, (text.rstrip("\n") + "\n").encode())


def main(arguments: Sequence[str]) -> None:
    """Execute the given notebooks, or all of them."""
    for path in [Path(name) for name in arguments] or sorted(NOTEBOOKS.glob("*.ipynb")):
        started = time.monotonic()
        write_notebook(path, execute(read_notebook(path)))
        print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
