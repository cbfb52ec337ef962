"""The errors a person reads: what is wrong, where, what was got, what is allowed, what to do."""

from collections.abc import Mapping
from typing import Any, ClassVar


class MdcError(Exception):
    """Base class of every error this project raises on purpose.

    Parameters
    ----------
    what : str
        What is wrong, in one clause.
    where : str
        The key, file, site or array concerned.
    got : object
        The offending value; left out of the message when not given.
    expected : str
        What is allowed there.
    hint : str
        What to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        got: object = None,
        expected: str = "",
        hint: str = "",
    ) -> None:
        self.what, self.where, self.got = what, where, got
        self.expected, self.hint = expected, hint
        head = f"{where}: {what}" if where else what
        details = [
            f"got {got!r}" if got is not None else "",
            f"expected {expected}" if expected else "",
        ]
        detail = ", ".join(part for part in details if part)
        super().__init__(head + (f" ({detail})" if detail else "") + (f". {hint}" if hint else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling between processes with every field, notes included."""
        told = (type(self), self.what, self.where, self.got, self.expected, self.hint)
        return (_rebuild, told, self.__dict__)


def _rebuild(
    kind: type[MdcError], what: str, where: str, got: object, expected: str, hint: str
) -> MdcError:
    return kind(what, where=where, got=got, expected=expected, hint=hint)


class ConfigError(MdcError):
    """A key or value of the run config, node config or an arm file is not usable."""

    exit_code = 2


class DivergedError(ConfigError):
    """The sites' updates were fit, and the global model made of them is not."""


class DataError(MdcError):
    """A data set is missing, unreadable or not of the shape its contract states."""

    exit_code = 2


class ModelError(MdcError):
    """A model cannot be built, or does not fit the data or the arrays it was given."""

    exit_code = 2


class PlanError(MdcError):
    """A site was sent a round plan that it does not understand."""


class DeadlineError(MdcError):
    """A site stopped its training, because nobody waits for the result any more."""


class RunError(MdcError):
    """The run could not go on: no sites, an engine that died, a directory in use."""


class SiteInputError(RunError):
    """A round failed because sites cannot use their config, data or model, or the round's plan."""

    exit_code = 2


class QuorumError(RunError):
    """Too few sites are there, or gave an update; the run can go on when they are back.

    Parameters
    ----------
    dropped : dict
        Why a site gave no update, by site, for people.
    causes : dict
        The same as a code, a `strategies.exchange.causes.Cause`.
    """

    exit_code = 3

    def __init__(
        self,
        what: str,
        *,
        dropped: Mapping[str, str] | None = None,
        causes: Mapping[str, str] | None = None,
        **told: Any,
    ) -> None:
        super().__init__(what, **told)
        self.dropped, self.causes = dict(dropped or {}), dict(causes or {})


class EngineError(RunError):
    """What carries the run has died: a process of Flower's or Ray's. A restart may mend it."""
