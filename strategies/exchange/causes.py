"""Why a site's reply does not count: a code for programs, beside the reason for people.

A site that fails says so with Flower's error reply: a number, and a text. The number is ours for
each kind of error that this project raises on purpose, so that nobody has to read the text.
"""

from enum import IntEnum, StrEnum

from strategies.common.errors import (
    ConfigError,
    DataError,
    DeadlineError,
    MdcError,
    ModelError,
    PlanError,
)


class FlowerError(IntEnum):
    """Numbers of Flower's own error replies, as far as they are read or sent here."""

    UNKNOWN = 0
    RAISED = 2
    MESSAGE_UNAVAILABLE = 3
    REPLY_UNAVAILABLE = 4
    NODE_UNAVAILABLE = 5
    INVALID_APP = 7


class Cause(StrEnum):
    """Why a reply does not count, or did not come."""

    CONFIG = "config"
    """The site refused the run's config, or its own."""
    DATA = "data"
    """The site's data are missing, unreadable, or not what was agreed."""
    MODEL = "model"
    """The site cannot build the model, or it does not fit what the site was sent."""
    PLAN = "plan"
    """The site does not understand what it was told to do."""
    LATE = "late"
    """The site stopped at the deadline, because nobody waits any longer."""
    APP_REFUSED = "app-refused"
    """The site does not run the app that it was sent."""
    SITE_FAILED = "site-failed"
    """Anything else that went wrong at the site."""
    NO_REPLY = "no-reply"
    """Nothing came from the site before the deadline."""
    NOT_ONLINE = "not-online"
    """The site was not asked, because it was not there."""
    WRONG_PLAN = "wrong-plan"
    """The reply is to another plan than this round's."""
    MISFIT = "misfit"
    """Arrays or metrics are not those that were asked for."""
    NOT_FINITE = "not-finite"
    """Values are not finite: training has diverged there."""
    OUT_OF_BOUNDS = "out-of-bounds"
    """Values are beyond what is allowed, or impossible."""
    CLAIM = "claim"
    """The site's number of examples is not what it said before."""
    DAMAGED = "damaged"
    """The reply was damaged on the coordinator's disk."""


BAD_INPUT = frozenset({Cause.CONFIG, Cause.DATA, Cause.MODEL, Cause.PLAN})
"""What a site cannot use: a config, data, a model or a plan. Trying again does not help."""

_SENT: dict[type[BaseException], tuple[int, Cause]] = {
    # Flower's own numbers are below 100.
    ConfigError: (101, Cause.CONFIG),
    DataError: (102, Cause.DATA),
    ModelError: (103, Cause.MODEL),
    PlanError: (104, Cause.PLAN),
    DeadlineError: (105, Cause.LATE),
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
    """Return the number that an error reply carries; Flower's own for any other exception."""
    known = (kind for kind in type(error).__mro__ if kind in _SENT)
    kind = next(known, None)
    return _SENT[kind][0] if kind else FlowerError.RAISED


def cause_of(code: int) -> Cause:
    """Return why a reply with this error code does not count."""
    return _RECEIVED.get(code, Cause.SITE_FAILED)
