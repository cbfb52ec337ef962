"""Error replies: what a site tells the coordinator about an exception."""

import re
import traceback
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Error

from strategies.common.errors import DataError, MdcError
from strategies.exchange.causes import error_code

TRACE_LINES = 6
"""Traceback lines in a simulated site's error reply: the last two or three calls."""

TRACE_CALLS = 3
"""Traceback calls in a real site's error reply."""

_SLASH = re.compile(r"[/\\]")


def is_simulated(node_config: Mapping[str, object]) -> bool:
    """Return whether a node config, which may be wrong, is that of a simulated site."""
    return "partition-id" in node_config and "site" not in node_config


def error_of(error: Exception, private: bool = False) -> Error:
    """Return an exception as an error reply: code, type, message, the traceback's last lines.

    For an error at a real site (``private``), the reply contains the message of an `MdcError`,
    without paths. For any other error it contains only type and place, because the text could
    contain a value of the data. The site's own log has the complete error.
    """
    kind = type(error).__name__
    if isinstance(error, MdcError):
        # An MdcError explains itself; any other error needs its place in the code.
        reason = f"{kind}: {without_paths(error) if private else error}"
    elif private:
        calls = traceback.extract_tb(error.__traceback__)[-TRACE_CALLS:]
        places = [f"{Path(call.filename).name}:{call.lineno} in {call.name}" for call in calls]
        reason = "\n".join([f"{kind}, see the site's log", *places])
    else:
        lines = "".join(traceback.format_tb(error.__traceback__)).splitlines()
        reason = "\n".join([f"{kind}: {error}", *lines[-TRACE_LINES:]])
    return Error(error_code(error), reason)


def without_paths(error: MdcError) -> str:
    """Return an error's message without anything that may be a path, or that follows one.

    For an error in the data, the message leaves out the found and the expected value: they may be
    data, or names of classes, which are names of folders.
    """

    def safe(value: object) -> object:
        return None if _SLASH.search(str(value)) else value

    about_data = isinstance(error, DataError)
    what, *rest = _SLASH.split(error.what, maxsplit=1)
    public = MdcError(
        f"{what}<path>" if rest else what,
        where=str(safe(error.where) or ""),
        got=None if about_data else safe(error.got),
        expected="" if about_data else str(safe(error.expected) or ""),
        hint="The site's log has the details" if about_data else str(safe(error.hint) or ""),
    )
    return str(public)
