"""Execute notebooks in place, each in a kernel of its own: ``make notebooks``.

    python -m simulations.notebooks.execute [NOTEBOOK ...]

All of ``notebooks/`` by default. What differs from one execution to the next without a reason,
times and ids, is left out of the files. A notebook that fails is left as it was.
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
"""A notebook, or a part of one: a dictionary whose keys are attributes as well."""


def read_notebook(path: Path) -> Node:
    """Return a notebook, in the format of today."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def execute(notebook: Node) -> Node:
    """Return the notebook with the outputs of a clean kernel.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        # Sockets that are files: nobody else on this machine can speak to the kernel.
        config=Config({"KernelManager": {"transport": "ipc"}}),
        timeout=CELL_TIMEOUT_S,
        record_timing=False,
        coalesce_streams=True,
    )
    # Bars of downloads and partitioners are nothing to publish; tqdm reads this on import.
    return plain(client.execute(env={**os.environ, "TQDM_DISABLE": "1"}))


def plain(notebook: Node) -> Node:
    """Return the notebook without what differs from machine to machine and from time to time."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    return notebook


def write_notebook(path: Path, notebook: Node) -> None:
    """Write a notebook; whoever reads at the same time sees the old one or the new one."""
    nbformat.validate(notebook)
    text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    write_atomically(path, (text.rstrip("\n") + "\n").encode())


def main(arguments: Sequence[str]) -> None:
    """Execute the named notebooks, or all."""
    for path in [Path(name) for name in arguments] or sorted(NOTEBOOKS.glob("*.ipynb")):
        started = time.monotonic()
        write_notebook(path, execute(read_notebook(path)))
        print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
