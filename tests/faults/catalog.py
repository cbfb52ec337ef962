"""The table of docs/faults.md, told by the tests themselves.

``python -m tests.faults.catalog`` prints it.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Entry:
    """A row: what goes wrong, what happens then, what is lost; the module that holds it."""

    fault: str
    happens: str
    lost: str
    module: str


CATALOG: list[Entry] = []

SAME = "nothing: same bits as without the fault"


def fault(name: str, happens: str, lost: str = SAME) -> pytest.MarkDecorator:
    """Enter a fault into the table; return the mark of its test."""
    entry = Entry(name, happens, lost, inspect.stack()[1].frame.f_globals["__name__"])
    if entry not in CATALOG:
        CATALOG.append(entry)
    return pytest.mark.faults


def table() -> str:
    """Return the table of all faults that the tests of this package let happen."""
    package = importlib.import_module("tests.faults")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        if module.name.startswith("test_"):
            importlib.import_module(f"tests.faults.{module.name}")
    # Whichever module was imported first.
    entries = sorted(CATALOG, key=lambda entry: entry.module)
    rows = [f"| {entry.fault} | {entry.happens} | {entry.lost} |" for entry in entries]
    return "\n".join(["| what goes wrong | what happens | what is lost |", "|---|---|---|", *rows])


if __name__ == "__main__":
    # As a module of its own it would have a catalog of its own.
    from tests.faults import catalog

    print(catalog.table())
