"""Flower's SuperLink with two listeners: one for the sites, one for the coordinator's commands.

Flower serves three APIs on one port: Fleet, for the SuperNodes; Control, which starts runs and
registers keys; and Runtime, for the processes of a run. Only Fleet authenticates its callers.
Anyone who reaches the port could start a run, that is, run their own code at the coordinator and at
every site. Therefore this process binds Flower's own port to the loopback interface and opens a
second listener for the sites at the address in `LISTEN`. The second listener never serves the
Control and Runtime APIs, whatever the caller's address and whatever proxy is in between.

Start it as ``python -m mdc_flower.deployment.coordinator.superlink`` with the options of
``flower-superlink``.
"""

import asyncio
import base64
import binascii
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from fastapi import FastAPI
from flwr.supercore.address import parse_address
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import Pool
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mdc_flower import __version__

ABOUT = "/mdc/about"
"""Path that a site requests before it joins: versions, time, and whether a key is registered."""

FEDERATION = "MDC_FEDERATION"
"""Environment variable with the federation's name."""

LISTEN = "MDC_LISTEN"
"""Environment variable with the address, ``host:port``, of the sites' listener."""

FLEET, HEALTH = "/v1/fleet/", "/health"

MAX_BODY_BYTES = 64 * 1024**2
"""Maximum body size of one request from outside; Flower splits a model into chunks of 5 MiB.

Flower reads a request into memory before it authenticates the caller, so the size needs a limit.
"""


LOCK_PATIENCE_S = 120
"""Seconds that a request waits while another one writes to the database.

Flower waits 5 s and then fails, and a process of a run that is answered so gives up. Writing a
model of 1 GB can take longer.
"""

GRACE_S = 3
"""Seconds for the sites' requests to finish when the SuperLink stops."""


class SitesOnlyApp:
    """Serves the sites' paths of Flower's app and `ABOUT`; refuses all other paths.

    Parameters
    ----------
    app : ASGIApp
        Flower's app.
    state : State
        The app's state, with its register of keys.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, forward or refuse one request."""
        if scope["path"] == ABOUT:
            about = await run_in_threadpool(_about, self._state, scope["query_string"])
            await JSONResponse(about)(scope, receive, send)
        elif scope["path"].startswith(FLEET) or scope["path"] == HEALTH:
            await self._app(scope, _bounded(receive), send)
        else:
            await PlainTextResponse("only sites are served here", 403)(scope, receive, send)


class _SecondServer(uvicorn.Server):
    """A server in the event loop of another server; only the other one handles signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_sites(app: FastAPI) -> AsyncIterator[None]:
    """Serve sites at the address in `LISTEN` during the block, with the SuperLink's certificate."""
    own = app.state.superlink_lifespan.config
    host, port, _ = parse_address(os.environ[LISTEN]) or ("", 0, None)
    server = _SecondServer(
        uvicorn.Config(
            SitesOnlyApp(app, app.state),
            host=host,
            port=port,
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            ssl_keyfile=own.ssl_keyfile,
            ssl_certfile=own.ssl_certfile,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    serving = asyncio.create_task(server.serve())
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if serving.done():
        await serving  # raises the error, if there was one
        raise RuntimeError(f"the listener for sites did not start at {os.environ[LISTEN]}")
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _bounded(receive: Receive) -> Receive:
    """Return a ``receive`` that disconnects after `MAX_BODY_BYTES`."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body") or b"")
        return message if received <= MAX_BODY_BYTES else {"type": "http.disconnect"}

    return bounded


def _about(state: State, query: bytes) -> dict[str, Any]:
    keys = parse_qs(query.decode("ascii", "replace")).get("key", [])
    about: dict[str, Any] = {
        "federation": os.environ.get(FEDERATION, ""),
        "mdc-flower": __version__,
        "flwr": version("flwr"),
        "time": time.time(),
    }
    if keys:
        about |= _about_key(state, keys[0])
    return about


def _about_key(state: State, text: str) -> dict[str, bool]:
    """Return whether a public key (URL-safe base64) is registered, and its node online."""
    try:
        key = base64.urlsafe_b64decode(text)
    except (binascii.Error, ValueError):
        return {"registered": False, "online": False}
    links = state.linkstate_factory.state()
    node = links.get_node_id_by_public_key(key)
    if node is None:
        return {"registered": False, "online": False}
    infos = links.get_node_info(node_ids=[node])  # empty if the key was just unregistered
    return {"registered": bool(infos), "online": any(info.status == "online" for info in infos)}


def _wait_for_locks(connection: DBAPIConnection, *_: object) -> None:
    """Let a connection to the database wait for `LOCK_PATIENCE_S`; Flower has set less before."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {1000 * LOCK_PATIENCE_S}")
    cursor.close()


def main() -> None:
    """Run the SuperLink with the options on the command line.

    Raises
    ------
    RuntimeError
        If this Flower does not have the hook that opens the sites' listener.
    """
    if not hasattr(extensions, "get_lifespan_contexts"):
        raise RuntimeError(
            f"flwr {version('flwr')} has no extensions.get_lifespan_contexts; the listener for "
            "sites needs this hook"
        )
    extensions.get_lifespan_contexts = lambda: (serve_sites,)
    event.listen(Pool, "checkout", _wait_for_locks)
    flower_superlink()


if __name__ == "__main__":
    main()
