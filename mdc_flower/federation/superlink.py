"""Flower's SuperLink, with every door to the outside closed but the sites' own.

Flower serves three APIs on one port: Fleet, for the SuperNodes; Control, which starts runs and
registers keys; and Runtime, for the processes of a run. Only Fleet asks who is calling. Whoever
reaches the port could start a run, that is, run code of his own at the coordinator and at every
site. So this process, started as ``python -m mdc_flower.federation.superlink`` with the options of
``flower-superlink``, serves Control and Runtime to its own machine alone.
"""

import base64
import binascii
import ipaddress
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs

from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mdc_flower import __version__

ABOUT = "/mdc/about"
"""What a site may ask before it joins: versions, the time, and whether a key is registered."""

FEDERATION = "MDC_FEDERATION"
"""Environment variable with the federation's name."""

LISTEN = "MDC_LISTEN"
"""Environment variable with the address that the SuperLink binds."""

ALL_ADDRESSES = ("0.0.0.0", "::")

FLEET, HEALTH = "/v1/fleet/", "/health"

MAX_BODY_BYTES = 64 * 1024**2
"""The most that one call from outside may send; Flower cuts a model into chunks of 5 MiB.

Flower reads a call into memory before it looks at who calls.
"""


class OnlySites:
    """Serves sites what is theirs, and everything else to this machine alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, pass on or refuse one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["path"] == ABOUT:
            await JSONResponse(await run_in_threadpool(_about, scope))(scope, receive, send)
        elif _is_local(scope):
            await self._app(scope, receive, send)
        elif scope["path"].startswith(FLEET) or scope["path"] == HEALTH:
            await self._app(scope, _bounded(receive), send)
        else:
            text = "served to the coordinator's own machine only"
            await PlainTextResponse(text, 403)(scope, receive, send)


def _is_local(scope: Scope) -> bool:
    """Return whether the caller is at the loopback interface, or at the one address bound.

    Where a certain address is bound, its own machine calls from that very address. Where all are,
    this says nothing: rootless containers give callers from outside the container's own address.
    """
    client, server = _address(scope.get("client")), _address(scope.get("server"))
    is_bound = os.environ.get(LISTEN, "") not in ("", *ALL_ADDRESSES)
    return client is not None and (client.is_loopback or (is_bound and client == server))


def _bounded(receive: Receive) -> Receive:
    """Return a ``receive`` that hangs up on a caller who sends too much."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body") or b"")
        return message if received <= MAX_BODY_BYTES else {"type": "http.disconnect"}

    return bounded


def _address(
    place: Sequence[object] | None,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(str(place[0]) if place else "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _about(scope: Scope) -> dict[str, Any]:
    keys = parse_qs(scope["query_string"].decode("ascii", "replace")).get("key", [])
    about: dict[str, Any] = {
        "federation": os.environ.get(FEDERATION, ""),
        "mdc-flower": __version__,
        "flwr": version("flwr"),
        "time": time.time(),
    }
    if keys:
        about |= _about_key(scope, keys[0])
    return about


def _about_key(scope: Scope, text: str) -> dict[str, bool]:
    """Return whether a public key (base64, URL-safe) is registered, and its node online."""
    try:
        key = base64.urlsafe_b64decode(text)
    except (binascii.Error, ValueError):
        return {"registered": False, "online": False}
    state = scope["app"].state.linkstate_factory.state()
    node = state.get_node_id_by_public_key(key)
    if node is None:
        return {"registered": False, "online": False}
    infos = state.get_node_info(node_ids=[node])  # none if it was put out just now
    return {"registered": bool(infos), "online": any(info.status == "online" for info in infos)}


def main() -> None:
    """Run the SuperLink with the options on the command line.

    Raises
    ------
    RuntimeError
        If this Flower has no such hook: it would serve everybody everything.
    """
    if not hasattr(extensions, "get_middleware"):
        raise RuntimeError(f"flwr {version('flwr')} does not ask extensions for middleware")
    # With more than its own machine in it, callers could say that they are this machine.
    os.environ["FORWARDED_ALLOW_IPS"] = "127.0.0.1"
    extensions.get_middleware = lambda: (Middleware(OnlySites),)
    flower_superlink()


if __name__ == "__main__":
    main()
