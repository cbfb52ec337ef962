"""Checks with one line of output each: passed, or what to do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.console import Console

from strategies.common.errors import MdcError


@dataclass(frozen=True)
class Check:
    """Result of one check; ``ok`` is None for a fact that neither passes nor fails."""

    name: str
    ok: bool | None
    detail: str


def guarded(name: str, work: Callable[[], str]) -> Check:
    """Run the work as a check: it passes with the returned text, or fails with the error."""
    try:
        return Check(name, True, work())
    except (MdcError, OSError) as error:
        return Check(name, False, str(error))
    except Exception as error:  # a user's loader may raise anything
        return Check(name, False, f"{type(error).__name__}: {error}")


def show(checks: Iterable[Check], console: Console, where: str) -> None:
    """Print each check as soon as it is done.

    Raises
    ------
    MdcError
        If any check failed.
    """
    failed = 0
    for check in checks:
        mark = "      " if check.ok is None else "ok    " if check.ok else "FAILED"
        console.print(f"{mark}  {check.name}: {check.detail}", markup=False, highlight=False)
        failed += check.ok is False
    if failed:
        raise MdcError(f"{failed} check{'s' if failed > 1 else ''} failed", where=where)
