"""Checks that a person reads: one line each, passed or what to do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.console import Console

from strategies.common.errors import MdcError


@dataclass(frozen=True)
class Check:
    """One line of a report: ``ok`` is None for a fact that is neither good nor bad."""

    name: str
    ok: bool | None
    detail: str


def guarded(name: str, work: Callable[[], str]) -> Check:
    """Return the check that passes if the work does, with what it returns or raises."""
    try:
        return Check(name, True, work())
    except (MdcError, OSError) as error:
        return Check(name, False, str(error))
    except Exception as error:  # a user's loader raises what it likes
        return Check(name, False, f"{type(error).__name__}: {error}")


def show(checks: Iterable[Check], console: Console, where: str) -> None:
    """Print the checks as they come.

    Raises
    ------
    MdcError
        If one failed.
    """
    failed = 0
    for check in checks:
        mark = "      " if check.ok is None else "ok    " if check.ok else "FAILED"
        console.print(f"{mark}  {check.name}: {check.detail}", markup=False, highlight=False)
        failed += check.ok is False
    if failed:
        raise MdcError(f"{failed} check{'s' if failed > 1 else ''} failed", where=where)
