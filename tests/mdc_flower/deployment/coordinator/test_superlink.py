"""What the sites' listener serves: before a recording app, before Flower's own, and for real."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.sql_mixin import _set_sqlite_pragmas
from flwr.superlink import extensions
from flwr.superlink.main import create_app
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import Pool
from starlette.datastructures import State
from starlette.types import Receive, Scope, Send

from mdc_flower import __version__
from mdc_flower.deployment.coordinator import superlink
from mdc_flower.deployment.coordinator.superlink import (
    ABOUT,
    FEDERATION,
    MAX_BODY_BYTES,
    SitesOnlyApp,
)

OUTSIDE = ("203.0.113.9", 4711)
PROTOBUF = [(b"content-type", PROTOBUF_MEDIA_TYPE.encode()), (b"host", b"localhost")]
CLOSED = [
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/docs",
    "/openapi.json",
    "/",
    "",
    "/v1/fleet",
    "//v1/fleet/x",
    "/V1/FLEET/register-node",
    "/x/../v1/fleet/register-node",
    "/v1/control/../fleet/register-node",
    "/health/",
    "/health/../v1/control/start-run",
    "/healthx",
    "/mdc/about/",
    "http://coordinator/v1/fleet/register-node",
    "*",
]


def scope_of(
    path: str,
    client: tuple[str, int] | None = OUTSIDE,
    method: str = "POST",
    kind: str = "http",
    **more: Any,
) -> Scope:
    return {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": PROTOBUF,
        "server": ("203.0.113.1", 8443),
        "client": client,
        "state": {},
        **more,
    }


def ask(app: Any, scope: Scope, body: bytes = b"") -> tuple[int, bytes]:
    """Return status and body of the answer to one call."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    status = next(m["status"] for m in sent if m["type"].endswith("response.start"))
    return status, b"".join(m.get("body", b"") for m in sent)


@pytest.fixture
def passed() -> list[str]:
    return []


@pytest.fixture
def sites_app(passed: list[str]) -> SitesOnlyApp:
    """Return the middleware before an app that notes what comes through."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope.get("path", scope["type"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return SitesOnlyApp(app, State())


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "CONNECT"])
def test_callers_from_outside_are_kept_out(
    sites_app: SitesOnlyApp, passed: list[str], path: str, method: str
) -> None:
    assert ask(sites_app, scope_of(path, method=method))[0] == 403
    assert passed == []


@pytest.mark.parametrize(
    "client", [None, ("not an address", 1), ("203.0.113.1", 1), ("127.0.0.1", 1), ("::1", 1)]
)
def test_it_does_not_matter_where_a_caller_seems_to_be(
    sites_app: SitesOnlyApp, passed: list[str], client: tuple[str, int] | None
) -> None:
    """Behind a proxy of the same machine, every caller is at the loopback interface."""
    lie = [*PROTOBUF, (b"x-forwarded-for", b"127.0.0.1")]
    for path in CLOSED:
        assert ask(sites_app, scope_of(path, client, headers=lie))[0] == 403, path
    assert passed == []


def test_sites_are_served_what_is_theirs(sites_app: SitesOnlyApp, passed: list[str]) -> None:
    paths = ["/v1/fleet/register-node", "/v1/fleet/", "/health"]
    assert [ask(sites_app, scope_of(path))[0] for path in paths] == [200] * 3
    assert passed == paths


def test_a_websocket_from_outside_is_kept_out(sites_app: SitesOnlyApp, passed: list[str]) -> None:
    assert ask(sites_app, scope_of("/v1/control/start-run", kind="websocket"))[0] == 403
    assert passed == []


def test_a_caller_from_outside_cannot_fill_the_memory() -> None:
    chunk, taken = bytes(1024**2), 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal taken
        while taken <= MAX_BODY_BYTES:
            message = await receive()
            if message["type"] != "http.request":
                return
            taken += len(message["body"])

    async def endless() -> Any:
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: Any) -> None:
        pass

    asyncio.run(SitesOnlyApp(app, State())(scope_of("/v1/fleet/push-object"), endless, send))
    assert taken == MAX_BODY_BYTES


def test_a_flower_without_the_hook_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(superlink, "flower_superlink", lambda: started.append(1))
    monkeypatch.delattr(extensions, "get_lifespan_contexts")
    with pytest.raises(RuntimeError, match=r"has no extensions\.get_lifespan_contexts"):
        superlink.main()
    assert started == []


def test_a_request_waits_longer_for_the_database_than_flower_lets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits: list[int] = []

    def start() -> None:
        database = create_engine(f"sqlite:///{tmp_path / 'superlink.db'}")
        event.listen(database, "connect", _set_sqlite_pragmas)  # as Flower does
        with database.connect() as connection:
            waits.append(connection.execute(text("PRAGMA busy_timeout")).scalar_one())

    start()
    monkeypatch.setattr(superlink, "flower_superlink", start)
    monkeypatch.setattr(extensions, "get_lifespan_contexts", extensions.get_lifespan_contexts)
    superlink.main()
    event.remove(Pool, "checkout", superlink._wait_for_locks)
    assert waits == [5_000, 120_000]


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Iterator[SitesOnlyApp]:
    """Return Flower's own app, made as the SuperLink makes it, behind the sites' listener."""
    monkeypatch.setenv(FEDERATION, "lungs")
    app = create_app()
    app.state.enable_supernode_auth = True
    yield SitesOnlyApp(app, app.state)
    app.state.linkstate_factory = None


def test_no_route_of_flowers_is_served_but_the_sites_own(flower: SitesOnlyApp) -> None:
    app: FastAPI = flower._app  # type: ignore[assignment]
    routes = [path for route in app.routes if (path := getattr(route, "path", None))]
    closed = [path for path in routes if not path.startswith("/v1/fleet/") and path != "/health"]
    assert "/openapi.json" in closed
    for path in [*closed, *CLOSED]:
        assert ask(flower, scope_of(path))[0] == 403, path
    assert ask(flower, scope_of("/health", method="GET"))[0] == 200


@pytest.mark.parametrize("host", [b"localhost", b"x/v1/control", b"x?", b"x#", b"[", b""])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/register-node",
        "/v1/fleet/pull-messages",
        "/v1/fleet/push-messages",
        "/v1/fleet/push-object",
        "/v1/fleet/get-fab",
        "/v1/fleet/unregister-node",
    ],
)
def test_no_fleet_call_goes_without_a_key(flower: SitesOnlyApp, host: bytes, path: str) -> None:
    headers = [PROTOBUF[0], (b"host", host)]
    assert ask(flower, scope_of(path, headers=headers))[0] == 401


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet//control/start-run",
        "/v1/fleet/\\..\\control/start-run",
        "/v1/fleet/register-node?/../../control/start-run",
        "/v1/fleet/register-node\n",
    ],
)
def test_no_path_below_fleet_leads_elsewhere(flower: SitesOnlyApp, path: str) -> None:
    assert ask(flower, scope_of(path))[0] in (401, 404)
    rooted = scope_of(
        path, root_path="/v1/fleet", headers=[*PROTOBUF, (b"x-forwarded-prefix", b"/v1")]
    )
    assert ask(flower, rooted)[0] in (401, 404)


def about(app: SitesOnlyApp, **query: str) -> dict[str, Any]:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    status, body = ask(app, scope_of(ABOUT, method="GET", query_string=text.encode()))
    assert status == 200
    return dict(json.loads(body))


def test_what_everybody_may_know(flower: SitesOnlyApp) -> None:
    told = about(flower)
    assert set(told) == {"federation", "mdc-flower", "flwr", "time"}
    assert (told["federation"], told["mdc-flower"]) == ("lungs", __version__)


@pytest.mark.parametrize("key", ["", "x", "%F0%9F%98%80", "AAAA", "A" * 60000, "%00"])
def test_a_key_that_is_none_is_not_registered(flower: SitesOnlyApp, key: str) -> None:
    told = about(flower, key=key)
    assert (told.get("registered", False), told.get("online", False)) == (False, False)


def test_whether_a_key_is_registered_and_its_node_online(flower: SitesOnlyApp) -> None:
    state = flower._state.linkstate_factory.state()
    public = public_key_to_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())
    key = base64.urlsafe_b64encode(public).decode().replace("=", "%3D")

    def told() -> tuple[bool, bool]:
        answer = about(flower, key=key)
        return answer["registered"], answer["online"]

    assert told() == (False, False)
    node = state.create_node("aid", "name", public, 0)
    assert told() == (True, False)
    state.activate_node(node, 30)
    assert told() == (True, True)
    state.delete_node("aid", node)
    assert told() == (False, False)


def test_a_node_that_is_put_out_while_it_is_asked_about(sites_app: SitesOnlyApp) -> None:
    links = SimpleNamespace(
        get_node_id_by_public_key=lambda key: 7, get_node_info=lambda node_ids: []
    )
    sites_app._state.linkstate_factory = SimpleNamespace(state=lambda: links)
    status, body = ask(sites_app, scope_of(ABOUT, query_string=b"key=AAAA"))
    assert (status, json.loads(body)["registered"]) == (200, False)
