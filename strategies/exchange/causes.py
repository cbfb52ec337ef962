"""Codes for why a site's reply does not count; programs read the code, people the reason.

A site that fails sends Flower's error reply, which has a number and a text. Each kind of error that
this project raises on purpose has its own number, so that no program has to parse the text.
"""

from enum import IntEnum, StrEnum

from strategies.common.errors import (
    ConfigError,
    DataError,
    DeadlineError,
    MdcError,
    ModelError,
    PlanError,
    StateMissingError,
)


class FlowerError(IntEnum):
    """The codes of Flower's own error replies that this project reads or sends."""

    UNKNOWN = 0
    RAISED = 2
    MESSAGE_UNAVAILABLE = 3
    REPLY_UNAVAILABLE = 4
    NODE_UNAVAILABLE = 5
    INVALID_APP = 7


class Cause(StrEnum):
    """Why a reply does not count or did not arrive."""

    CONFIG = "config"
    """The site rejected the run config or its own node config."""
    DATA = "data"
    """The site's data are missing, unreadable, or do not match the contract."""
    MODEL = "model"
    """The site cannot build the model, or its model does not fit the arrays it received."""
    PLAN = "plan"
    """The site does not understand the plan."""
    LATE = "late"
    """The site stopped at the deadline, when the coordinator stops waiting."""
    STATE_MISSING = "state-missing"
    """The site has lost the state of an earlier round; asked again, it begins anew."""
    APP_REFUSED = "app-refused"
    """The site refuses to run the app that it received."""
    SITE_FAILED = "site-failed"
    """The site failed for any other reason."""
    NO_REPLY = "no-reply"
    """No reply arrived before the deadline."""
    NOT_ONLINE = "not-online"
    """The site was not asked, because it was not online."""
    WRONG_PLAN = "wrong-plan"
    """The reply belongs to another plan, not to the plan of this round."""
    MISFIT = "misfit"
    """The arrays or metrics are not the expected ones."""
    NOT_FINITE = "not-finite"
    """Some values are not finite: training diverged at the site."""
    OUT_OF_BOUNDS = "out-of-bounds"
    """Some values are impossible or outside the allowed range."""
    CLAIM = "claim"
    """The site's number of examples contradicts what it reported before."""
    DAMAGED = "damaged"
    """The stored reply was damaged on the coordinator's disk."""


BAD_INPUT = frozenset({Cause.CONFIG, Cause.DATA, Cause.MODEL, Cause.PLAN})
"""Causes that retrying does not fix: a site cannot use its config, data, model or plan."""

_SENT: dict[type[BaseException], tuple[int, Cause]] = {
    # Flower's own codes are below 100.
    ConfigError: (101, Cause.CONFIG),
    DataError: (102, Cause.DATA),
    ModelError: (103, Cause.MODEL),
    PlanError: (104, Cause.PLAN),
    DeadlineError: (105, Cause.LATE),
    StateMissingError: (106, Cause.STATE_MISSING),
    MdcError: (100, Cause.SITE_FAILED),
}

_RECEIVED: dict[int, Cause] = {
    FlowerError.MESSAGE_UNAVAILABLE: Cause.NO_REPLY,
    FlowerError.REPLY_UNAVAILABLE: Cause.NO_REPLY,
    FlowerError.NODE_UNAVAILABLE: Cause.NO_REPLY,
    FlowerError.INVALID_APP: Cause.APP_REFUSED,
    **dict(_SENT.values()),
}


def error_code(error: BaseException) -> int:
    """Return the code of an error reply; Flower's own code for exceptions not listed here."""
    known = (kind for kind in type(error).__mro__ if kind in _SENT)
    kind = next(known, None)
    return _SENT[kind][0] if kind else FlowerError.RAISED


def cause_of(code: int) -> Cause:
    """Return the cause for an error code; `Cause.SITE_FAILED` for unknown codes."""
    return _RECEIVED.get(code, Cause.SITE_FAILED)
