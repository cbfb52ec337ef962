"""What Flower's own function does with a bundle once `pin_app` has taken its place."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as flower

from mdc_flower import __version__
from mdc_flower.console.site_log import SITE_LOG
from mdc_flower.deployment.site.supernode import pin_app
from mdc_flower.engines.app_bundle import stage_app

RUN = 22


class State:
    """As much of a node's state as is asked before a message is worked on."""

    def __init__(self) -> None:
        self.fabs: list[Fab] = []
        self.tasks: list[dict[str, Any]] = []
        self.replies: list[Message] = []

    def get_run(self, run_id: int) -> None:
        return None

    def get_node_id(self) -> int:
        return 5

    def get_run_series_context(self, series: int) -> None:
        return None

    def set_run_series_context(self, series: int, context: object) -> None:
        pass

    def store_run(self, run: object) -> None:
        pass

    def store_fab(self, fab: Fab) -> None:
        self.fabs.append(fab)

    def create_task(self, **task: Any) -> None:  # None: Flower goes no further
        self.tasks.append(task)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_fab_from_disk(stage_app(tmp_path_factory.mktemp("app") / "mdc-flower"))


@pytest.fixture
def pinned() -> Iterator[None]:
    """Pin the app, and give Flower its own functions back."""
    before = dict(vars(flower))
    pin_app()
    yield
    vars(flower).update(before)


@pytest.fixture
def pull(pinned: None, identity: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., State]:
    """Return a function that lets a node pull one message of a run with a bundle."""

    def pull(content: bytes, version: str = __version__, **verifications: str) -> State:
        state = State()
        monkeypatch.setattr(
            flower, "_insert_message", lambda reply, *_: state.replies.append(reply)
        )
        fab = Fab(hashlib.sha256(content).hexdigest(), content, dict(verifications))
        run = SimpleNamespace(
            fab_hash=fab.hash_str,
            fab_id="mdc-flower/mdc-flower",
            fab_version=version,
            override_config={},
            series_id=1,
            primary_task_type="clientapp",
        )
        message = Message(RecordDict(), dst_node_id=5, message_type="train")
        message.metadata.__dict__.update(_run_id=RUN, _message_id="m")
        flower._pull_and_store_message(
            state=state,  # type: ignore[arg-type]
            object_store=None,  # type: ignore[arg-type]
            node_config={},
            receive=lambda: (message, None),  # type: ignore[arg-type, return-value]
            get_run=lambda run_id: run,  # type: ignore[arg-type, return-value]
            get_fab=lambda fab_hash, run_id: fab,
            pull_object=lambda run_id, object_id: b"",
            confirm_message_received=lambda run_id, object_id: None,
            trusted_entities=None,
        )
        return state

    return pull


def test_the_installed_app_gets_its_task(pull: Callable[..., State], bundle: bytes) -> None:
    state = pull(bundle)
    assert (state.replies, [fab.content for fab in state.fabs]) == ([], [bundle])
    assert [task["run_id"] for task in state.tasks] == [RUN]


def refusal(state: State) -> str:
    assert (state.fabs, state.tasks) == ([], [])
    (reply,) = state.replies
    assert reply.error.code == ErrorCode.INVALID_FAB
    return str(reply.error.reason)


def test_any_other_bundle_is_answered_with_the_reason_and_never_stored(
    pull: Callable[..., State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "events.jsonl"
    monkeypatch.setenv(SITE_LOG, str(log))
    told = refusal(pull(b"no bundle"))
    assert told.startswith(
        "the site runs only its installed app and refuses this one: it cannot be read"
    )
    (event,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert (event["event"], event["reason"][:17]) == ("app-refused", "it cannot be read")


def test_what_a_coordinator_says_of_a_bundle_changes_nothing(pull: Callable[..., State]) -> None:
    assert refusal(pull(b"no bundle", valid_license="yes", installed="app", refused=""))


def test_the_installed_app_under_another_name_is_refused(
    pull: Callable[..., State], bundle: bytes
) -> None:
    told = refusal(pull(bundle, f"{__version__}.x/../../../../tmp/evil"))
    assert told.endswith("the run gives it another name or version")


def test_a_refusal_does_not_stick(pull: Callable[..., State], bundle: bytes) -> None:
    assert "it cannot be read" in refusal(pull(b"no bundle"))
    assert pull(bundle).tasks


def test_a_refused_bundle_cannot_run_even_where_flower_asks_nobody(
    pull: Callable[..., State], bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO(bundle)
    with zipfile.ZipFile(buffer, "a") as archive:  # Flower itself would take it
        archive.writestr("mdc_flower/client_app.abi3.so", b"")
    monkeypatch.setattr(flower, "_verify_fab", lambda *_: True)
    with pytest.raises(Exception, match="zip"):
        pull(buffer.getvalue())


@pytest.mark.parametrize("gone", ["_verify_fab", "_pull_and_store_message"])
def test_a_flower_that_checks_elsewhere_does_not_start(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(flower, gone)
    with pytest.raises(AttributeError):
        pin_app()
