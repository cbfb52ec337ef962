"""The table of docs/faults.md, collected from the marks of the tests.

``python -m tests.faults.catalog`` prints it.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Entry:
    """One row: what goes wrong, what happens then, what is lost, and the module of the test."""

    fault: str
    happens: str
    lost: str
    module: str


CATALOG: list[Entry] = []

SAME = "nothing: same bits as without the fault"


def fault(name: str, happens: str, lost: str = SAME) -> pytest.MarkDecorator:
    """Add a fault to the table, and return the mark for its test."""
    entry = Entry(name, happens, lost, inspect.stack()[1].frame.f_globals["__name__"])
    if entry not in CATALOG:
        CATALOG.append(entry)
    return pytest.mark.faults


def table() -> str:
    """Return the table of all faults that the tests of this package cause."""
    package = importlib.import_module("tests.faults")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        if module.name.startswith("test_"):
            importlib.import_module(f"tests.faults.{module.name}")
    # The order must not depend on which module was imported first.
    entries = sorted(CATALOG, key=lambda entry: entry.module)
    rows = [f"| {entry.fault} | {entry.happens} | {entry.lost} |" for entry in entries]
    return "\n".join(["| what goes wrong | what happens | what is lost |", "|---|---|---|", *rows])


if __name__ == "__main__":
    # `__main__` would have its own, empty catalog.
    from tests.faults import catalog

    print(catalog.table())
