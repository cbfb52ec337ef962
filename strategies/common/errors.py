"""Errors for users: what is wrong, where, what was found, what was expected, what to do."""

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
        The invalid value; omitted from the message if None.
    expected : str
        The allowed values.
    hint : str
        What the user can do about it.
    said : str
        The text of another exception. It may contain a value of the data, so it is part of the
        message where it was raised, but never of a site's reply.
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
        said: str = "",
    ) -> None:
        self.what, self.where, self.got = what, where, got
        self.expected, self.hint, self.said = expected, hint, said
        head = f"{where}: {what}" if where else what
        head += f": {said}" if said else ""
        details = [
            f"got {got!r}" if got is not None else "",
            f"expected {expected}" if expected else "",
        ]
        detail = ", ".join(part for part in details if part)
        super().__init__(head + (f" ({detail})" if detail else "") + (f". {hint}" if hint else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Support pickling with all fields and notes."""
        fields = (self.what, self.where, self.got, self.expected, self.hint, self.said)
        arguments = (type(self), *fields)
        return (_rebuild, arguments, self.__dict__)


def _rebuild(
    kind: type[MdcError],
    what: str,
    where: str,
    got: object,
    expected: str,
    hint: str,
    said: str = "",
) -> MdcError:
    return kind(what, where=where, got=got, expected=expected, hint=hint, said=said)


class ConfigError(MdcError):
    """A key or value of the run config, a node config or an arm file is invalid."""

    exit_code = 2


class DivergedError(ConfigError):
    """The sites' updates are valid, but the global model computed from them is not."""


class DataError(MdcError):
    """A data set is missing, unreadable, or does not match its contract."""

    exit_code = 2


class ModelError(MdcError):
    """A model cannot be built, or does not fit the given data or arrays."""

    exit_code = 2


class PlanError(MdcError):
    """A site received a round plan that it does not understand."""


class DeadlineError(MdcError):
    """A site stopped training, because the coordinator no longer waits for the result."""


class StateMissingError(MdcError):
    """A site has lost the state of an earlier round with which it should begin a round."""


class RunError(MdcError):
    """The run cannot continue: no sites, an engine that died, a directory in use."""


class SiteInputError(RunError):
    """A round failed because sites cannot use their config, data, model or the round's plan."""

    exit_code = 2


class QuorumError(RunError):
    """Too few sites are online or sent an update; the run can be resumed when they are back.

    Parameters
    ----------
    dropped : dict
        Why each site gave no update, as text, by site.
    causes : dict
        The same as codes, each a `strategies.exchange.causes.Cause`.
    """

    exit_code = 3

    def __init__(
        self,
        what: str,
        *,
        dropped: Mapping[str, str] | None = None,
        causes: Mapping[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(what, **details)
        self.dropped, self.causes = dict(dropped or {}), dict(causes or {})


class EngineError(RunError):
    """A process of Flower or Ray that the run depends on died. A restart may help."""
