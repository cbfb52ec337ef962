"""Who may call what: the middleware before a recording app, and before Flower's own app."""

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink import extensions
from flwr.superlink.main import create_app
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from mdc_flower import __version__
from mdc_flower.federation import superlink
from mdc_flower.federation.superlink import ABOUT, FEDERATION, LISTEN, MAX_BODY_BYTES, OnlySites

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
def door(passed: list[str]) -> OnlySites:
    """Return the middleware before an app that notes what comes through."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope.get("path", scope["type"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return OnlySites(app)


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "CONNECT"])
def test_callers_from_outside_are_kept_out(
    door: OnlySites, passed: list[str], path: str, method: str
) -> None:
    assert ask(door, scope_of(path, method=method))[0] == 403
    assert passed == []


@pytest.mark.parametrize(
    "client",
    [
        None,
        ("", 0),
        ("not an address", 1),
        ("localhost", 1),
        ("0.0.0.0", 1),
        ("::", 1),
        ("10.0.0.1", 1),
        ("::ffff:10.0.0.1", 1),
        ("fe80::1%eth0", 1),
        ("127.0.0.1, 10.0.0.1", 1),
        ("203.0.113.1", 1),  # the address called: all are bound, so it says nothing
    ],
)
def test_callers_who_are_not_this_machine(door: OnlySites, client: tuple[str, int] | None) -> None:
    assert ask(door, scope_of("/v1/control/start-run", client))[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_served_everything(door: OnlySites, passed: list[str], host: str) -> None:
    for path in CLOSED:
        assert ask(door, scope_of(path, (host, 1)))[0] == 200
    assert passed == CLOSED


def test_where_one_address_is_bound_its_own_machine_calls_from_it(
    door: OnlySites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status(client: str, server: str = "203.0.113.1") -> int:
        return ask(door, scope_of("/docs", (client, 1), server=(server, 8443)))[0]

    monkeypatch.setenv(LISTEN, "203.0.113.1")
    assert status("203.0.113.1") == 200
    assert status("203.0.113.9") == 403
    assert status("::ffff:203.0.113.1") == 200
    for everything in ("0.0.0.0", "::"):
        monkeypatch.setenv(LISTEN, everything)
        assert status("203.0.113.1") == 403


def test_sites_are_served_what_is_theirs(door: OnlySites, passed: list[str]) -> None:
    paths = ["/v1/fleet/register-node", "/v1/fleet/", "/health"]
    assert [ask(door, scope_of(path))[0] for path in paths] == [200] * 3
    assert passed == paths


def test_a_websocket_from_outside_is_kept_out(door: OnlySites, passed: list[str]) -> None:
    assert ask(door, scope_of("/v1/control/start-run", kind="websocket"))[0] == 403
    assert passed == []


def test_the_life_of_the_app_is_its_own(door: OnlySites, passed: list[str]) -> None:
    ask(door, {"type": "lifespan"})
    assert passed == ["lifespan"]


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

    asyncio.run(OnlySites(app)(scope_of("/v1/fleet/push-object"), endless, send))
    assert taken == MAX_BODY_BYTES


def test_a_forwarded_address_is_believed_of_this_machine_alone(
    passed: list[str], door: OnlySites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(superlink, "flower_superlink", lambda: None)
    superlink.main()
    # As uvicorn does, which reads the variable when it starts.
    served = ProxyHeadersMiddleware(door, os.environ["FORWARDED_ALLOW_IPS"])  # type: ignore[arg-type]
    lie = [*PROTOBUF, (b"x-forwarded-for", b"127.0.0.1")]
    assert ask(served, scope_of("/v1/control/start-run", headers=lie))[0] == 403
    truth = [*PROTOBUF, (b"x-forwarded-for", b"203.0.113.9")]
    told = scope_of("/v1/control/start-run", ("127.0.0.1", 1), headers=truth)
    assert ask(served, told)[0] == 403
    assert passed == []


def test_a_flower_without_the_hook_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(superlink, "flower_superlink", lambda: started.append(1))
    monkeypatch.delattr(extensions, "get_middleware")
    with pytest.raises(RuntimeError, match="does not ask extensions"):
        superlink.main()
    assert started == []


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Iterator[FastAPI]:
    """Return Flower's own app, made as the SuperLink makes it, with node keys."""
    monkeypatch.setattr(extensions, "get_middleware", lambda: (Middleware(OnlySites),))
    monkeypatch.setenv(FEDERATION, "lungs")
    app = create_app()
    app.state.enable_supernode_auth = True
    yield app
    app.state.linkstate_factory = None


def test_flower_puts_the_door_first(flower: FastAPI) -> None:
    assert str(flower.user_middleware[0].cls) == str(OnlySites)
    routes = [path for route in flower.routes if (path := getattr(route, "path", None))]
    closed = [path for path in routes if not path.startswith("/v1/fleet/") and path != "/health"]
    for path in [*closed, *CLOSED]:
        assert ask(flower, scope_of(path))[0] == 403, path
    assert ask(flower, scope_of("/health", method="GET"))[0] == 200
    assert ask(flower, scope_of("/openapi.json", ("127.0.0.1", 1), "GET"))[0] == 200


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
def test_no_fleet_call_goes_without_a_key(flower: FastAPI, host: bytes, path: str) -> None:
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
def test_no_path_below_fleet_leads_elsewhere(flower: FastAPI, path: str) -> None:
    assert ask(flower, scope_of(path))[0] in (401, 404)
    rooted = scope_of(
        path, root_path="/v1/fleet", headers=[*PROTOBUF, (b"x-forwarded-prefix", b"/v1")]
    )
    assert ask(flower, rooted)[0] in (401, 404)


def about(app: FastAPI, **query: str) -> dict[str, Any]:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    status, body = ask(app, scope_of(ABOUT, method="GET", query_string=text.encode()))
    assert status == 200
    return dict(json.loads(body))


def test_what_everybody_may_know(flower: FastAPI) -> None:
    told = about(flower)
    assert set(told) == {"federation", "mdc-flower", "flwr", "time"}
    assert (told["federation"], told["mdc-flower"]) == ("lungs", __version__)


@pytest.mark.parametrize("key", ["", "x", "%F0%9F%98%80", "AAAA", "A" * 60000, "%00"])
def test_a_key_that_is_none_is_not_registered(flower: FastAPI, key: str) -> None:
    told = about(flower, key=key)
    assert (told.get("registered", False), told.get("online", False)) == (False, False)


def test_whether_a_key_is_registered_and_its_node_online(flower: FastAPI) -> None:
    state = flower.state.linkstate_factory.state()
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


def test_a_node_that_is_put_out_while_it_is_asked_about(door: OnlySites) -> None:
    state = SimpleNamespace(
        get_node_id_by_public_key=lambda key: 7, get_node_info=lambda node_ids: []
    )
    app = SimpleNamespace(
        state=SimpleNamespace(linkstate_factory=SimpleNamespace(state=lambda: state))
    )
    status, body = ask(door, scope_of(ABOUT, query_string=b"key=AAAA", app=app))
    assert (status, json.loads(body)["registered"]) == (200, False)
