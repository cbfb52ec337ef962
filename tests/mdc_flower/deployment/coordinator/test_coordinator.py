"""What the coordinator's commands do, with Flower's processes played by a register in memory."""

import json
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.client import BadStatusLine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.deployment.coordinator import coordinator, endpoints
from mdc_flower.deployment.coordinator import site_keys as registry
from mdc_flower.deployment.coordinator.coordinator import (
    last_run,
    one_run,
    run_defaults,
    run_on_sites,
    start,
    status,
)
from mdc_flower.deployment.kits.kits import CoordinatorKit, read_coordinator_kit
from mdc_flower.engines.flower_processes import frugal
from strategies.common.errors import RunError
from strategies.common.files import StorageError
from tests.mdc_flower.deployment.federations import Federation
from tests.mdc_flower.deployment.flower import FakeSuperLink


@pytest.fixture
def kit(federation: Federation) -> CoordinatorKit:
    return read_coordinator_kit(federation.kits / "coordinator")


@pytest.fixture
def link(kit: CoordinatorKit, monkeypatch: pytest.MonkeyPatch) -> FakeSuperLink:
    link = FakeSuperLink()
    endpoints.write_control_address(kit, 4711)
    for module in (registry, coordinator):
        monkeypatch.setattr(module, "flwr", link)
    monkeypatch.setattr(endpoints, "is_healthy", lambda address, ca: bool(address))
    monkeypatch.setattr(endpoints, "get_local", lambda url, ca: b'{"federation": "lungs"}')
    monkeypatch.setattr(coordinator, "guarded", lambda home: nullcontext())
    monkeypatch.setattr(coordinator, "check_address", lambda kit: None)
    return link


@pytest.fixture
def led(
    kit: CoordinatorKit, link: FakeSuperLink, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Return a function that leads for some looks and does something before each."""

    def led(*before: Callable[[], object], ended: str = "the SuperLink exited with 9") -> list[str]:
        steps, now, lines = list(before), [0.0], list[str]()

        def poll() -> int | None:
            return None if steps else 9

        def sleep(seconds: float) -> None:
            steps.pop(0)()
            now[0] += seconds

        @contextmanager
        def superlink(*arguments: Any, **options: Any) -> Iterator[Any]:
            led.options = options  # type: ignore[attr-defined]
            yield SimpleNamespace(port=4711, process=SimpleNamespace(poll=poll, returncode=9))

        monkeypatch.setattr(coordinator, "superlink", superlink)
        monkeypatch.setattr(
            coordinator, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0])
        )
        with pytest.raises(RunError, match=ended):
            start(kit, False, lines.append)
        return lines[1:]

    return led


def nothing() -> None:
    pass


def test_sites_are_let_in_and_the_folder_is_watched(
    led: Callable[..., list[str]], kit: CoordinatorKit, link: FakeSuperLink
) -> None:
    gone = (kit.folder / "sites" / "lisbon.pub").unlink
    assert led(nothing, gone, nothing) == [
        "berlin: registered",
        "lisbon: registered",
        "2 sites may take part: berlin, lisbon",
        "lisbon: its key is no longer accepted",
        "1 sites may take part: berlin",
    ]
    # Nothing is asked of Flower where nothing has changed.
    assert link.calls.count(("supernode", "list")) == 2
    assert led.options["variables"] == {  # type: ignore[attr-defined]
        **frugal(),
        "MDC_FEDERATION": "lungs",
        "MDC_LISTEN": "0.0.0.0:8443",
        "MDC_REGISTER": str(kit.state / "register.json"),
        "MDC_SITE_EXAMPLES": str(kit.folder / "kit.toml"),
    }


def test_a_bad_key_stops_neither_the_coordinator_nor_the_other_sites(
    led: Callable[..., list[str]], kit: CoordinatorKit
) -> None:
    path = kit.folder / "sites" / "aachen.pub"
    path.write_text("ecd")  # is being copied
    told = led(*[nothing] * 20, lambda: path.write_text("ecdsa-sha2-nistp384 AAAA x"), nothing)
    refusals = [line for line in told if line.startswith("aachen: its key could not be registered")]
    assert len(refusals) == 1, "it is told once, however often it is tried"
    assert told[-2:] == [
        "aachen: registered", "3 sites may take part: aachen, berlin, lisbon",
    ]  # fmt: skip


def test_a_superlink_that_is_busy_is_asked_again(
    led: Callable[..., list[str]], link: FakeSuperLink
) -> None:
    link.fail_at = "list"
    told = led(nothing, lambda: setattr(link, "fail_at", None), *[nothing] * 16)
    assert told[0].startswith("the register of sites is not up to date: ")
    assert told[-2:] == ["berlin: registered", "lisbon: registered"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"federation": "other"}', "it belongs to federation 'other'"),
        (b"[]", "list indices"),
        (b"<html>", "Expecting value"),
        (OSError("HTTP Error 404: Not Found"), "404"),
        (BadStatusLine("SSH-2.0"), "SSH-2.0"),
    ],
)
def test_a_superlink_without_the_door_is_not_left_open(
    led: Callable[..., list[str]],
    kit: CoordinatorKit,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    reason: str,
) -> None:
    def ask(url: str, ca: Path) -> bytes:
        assert (url, ca) == ("127.0.0.1:8443/mdc/about", kit.ca)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    monkeypatch.setattr(endpoints, "get_local", ask)
    assert led(nothing, ended=f"does not restrict its commands to this machine .*{reason}") == []


def test_an_address_that_is_in_use_is_named_before_anything_is_started(
    kit: CoordinatorKit, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = kit.model_copy(update={"listen": "127.0.0.1", "port": port})
        with pytest.raises(RunError) as caught:
            start(taken, False, print)
    assert str(caught.value).startswith(
        f"127.0.0.1:{port}: the coordinator cannot listen there: Address already in use"
    )


def test_two_at_once(kit: CoordinatorKit, link: FakeSuperLink, tmp_path: Path) -> None:
    with one_run(kit, tmp_path / "a"):
        with (
            pytest.raises(RunError, match="another run is in progress on this coordinator"),
            one_run(kit, tmp_path / "b"),
        ):
            raise AssertionError
        assert last_run(kit) == tmp_path / "a"
    with one_run(kit, tmp_path / "b"):
        assert last_run(kit) == tmp_path / "b"


def test_what_is_written_is_private(kit: CoordinatorKit, tmp_path: Path) -> None:
    kit.state.chmod(0o755)
    with one_run(kit, tmp_path):
        assert stat.S_IMODE(kit.state.stat().st_mode) == 0o700


def test_a_state_folder_that_cannot_be_made(kit: CoordinatorKit, tmp_path: Path) -> None:
    kit.state.rmdir()
    kit.state.write_text("a file")
    with (
        pytest.raises(StorageError, match=f"^{kit.state}: the folder is not writable") as caught,
        one_run(kit, tmp_path),
    ):
        raise AssertionError
    assert "It must belong to the user who runs this" in str(caught.value)


def test_a_run_without_a_coordinator_is_told_where_it_was_looked_for(
    kit: CoordinatorKit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(endpoints, "is_healthy", lambda address, ca: False)
    with pytest.raises(RunError, match="the coordinator is not running") as caught:
        status(kit)
    assert str(caught.value).endswith(f"Start it: mdc coordinator start {kit.folder}")
    lines: list[str] = []
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(
        coordinator, "time", SimpleNamespace(sleep=lambda s: None, monotonic=lambda: next(now))
    )
    config = read_run_config({"output-dir": str(tmp_path / "run"), "wait-for-sites-s": 10.0})
    with pytest.raises(RunError, match="the coordinator did not run within 10 s"):
        run_on_sites(kit, config, lines.append)
    assert lines == ["waiting up to 10 s for the coordinator at 127.0.0.1:8443"]


def test_a_run_that_nobody_waits_for_is_stopped_before_and_after(
    kit: CoordinatorKit, link: FakeSuperLink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link.runs = [
        {"run-id": "1", "status": "finished:completed"},
        {"run-id": "2", "status": "running"},  # of a command that was killed
    ]

    def run_through(config: RunConfig, home: Path, *others: Any) -> None:
        assert [run["status"] for run in link.runs] == ["finished:completed", "finished:stopped"]
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        link.runs.append({"run-id": "3", "status": "running"})
        raise KeyboardInterrupt

    monkeypatch.setattr(coordinator, "run_through", run_through)
    with pytest.raises(KeyboardInterrupt):
        run_on_sites(kit, read_run_config({"output-dir": str(tmp_path / "run")}), print)
    assert [call for call in link.calls if call[0] == "stop"] == [("stop", "2"), ("stop", "3")]


def test_a_run_directory_that_cannot_be_made(
    kit: CoordinatorKit, link: FakeSuperLink, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the run directory cannot be created"):
        run_on_sites(kit, read_run_config({"output-dir": str(tmp_path / "file" / "run")}), print)


def test_the_keys_that_a_kit_decides(kit: CoordinatorKit) -> None:
    told = run_defaults(kit)
    assert (told["num-sites"], told["site-evaluation"], told["data-root"]) == (2, True, "")
    assert str(told["dataset"]).startswith("contract:")
    assert Path(str(told["output-dir"])).parent == kit.state / "runs"
    own = run_defaults(kit.model_copy(update={"data": "digits"}))
    assert (own["dataset"], own["site-evaluation"]) == ("digits", False)


def test_status_by_name_with_version_and_last_round(
    kit: CoordinatorKit, link: FakeSuperLink, tmp_path: Path
) -> None:
    with one_run(kit, tmp_path):
        registry.synchronize(kit, kit.sites, tmp_path)
    assert [(s.node.name, s.version, s.last_round) for s in status(kit)] == [
        ("berlin", "", 0), ("lisbon", "", 0),
    ]  # fmt: skip
    event = {"event": "run-started", "time": 1.0, "versions": {"berlin": "0.1.0"}}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    lines = [{"round": 1, "participants": ["berlin"]}, {"round": 2, "participants": ["lisbon"]}]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(s.node.name, s.version, s.last_round) for s in status(kit)] == [
        ("berlin", "0.1.0", 1), ("lisbon", "", 2),
    ]  # fmt: skip
