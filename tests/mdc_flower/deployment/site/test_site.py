"""The site's side: what its node is started with, and what its people read."""

import json
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mdc_flower.config import read_site_config
from mdc_flower.deployment.kits.kits import SiteKit, read_site_kit
from mdc_flower.deployment.site import site
from mdc_flower.deployment.site.node_config import node_config
from mdc_flower.deployment.site.site import (
    SiteView,
    only_one,
    start,
    start_ranks,
    wait_until_offline,
)
from strategies.common.errors import ConfigError, RunError
from strategies.exchange.metrics import TRAIN_METRICS
from tests.mdc_flower.deployment.federations import Federation

TRAINING = {
    "event": "training", "examples": 90, "round": 3, "local_epochs": 2, "local_steps": 0,
    "lr_max": 0.05, "lr_min": 0.01, "shape": "exponential",
}  # fmt: skip
PROGRESS = {
    "event": "progress", "epoch": 1, "step": 5, "num_steps": 20, "lr": 0.05, "loss": 0.5,
    "num_seen": 100, "seconds": 2.0,
}  # fmt: skip


@pytest.fixture
def kit(federation: Federation) -> SiteKit:
    return read_site_kit(federation.kits / "berlin")


def test_the_node_config_is_one_that_a_site_reads(kit: SiteKit) -> None:
    config = node_config(kit.with_data("digits", "/d"))
    read = read_site_config(config)
    assert (read.name, read.data, read.data_root, read.partition_id) == (
        "berlin",
        "digits",
        "/d",
        -1,
    )
    assert read.contract == str(kit.folder / "kit.toml")
    assert {name for name in TRAIN_METRICS if read.shares(name)} == set(kit.metrics)
    assert not read.allows("tests"), "a kit lets a run import nothing unless it says so"
    assert not any("key" in name for name in config)
    part = kit.model_copy(update={"partition_id": 1, "num_partitions": 3})
    assert read_site_config(node_config(part)).partition_id == 1


def test_one_site_a_kit(kit: SiteKit) -> None:
    with only_one(kit):
        with pytest.raises(RunError, match="this site is already running"), only_one(kit):
            raise AssertionError
        assert stat.S_IMODE(kit.state.stat().st_mode) == 0o700
    with only_one(kit):
        pass


@pytest.fixture
def started(kit: SiteKit, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, Any]]:
    """Play a node that writes to log and events, and ends; return lines told and what was seen."""
    told: list[str] = []
    seen: dict[str, Any] = {}

    @contextmanager
    def running(
        command: Sequence[str], env: Mapping[str, str], cwd: Path, log_path: Path
    ) -> Iterator[Any]:
        seen.update(command=list(command), env=dict(env), log=log_path)
        with log_path.open("a") as log:
            log.write("INFO :      routine\n\x1b[91mERROR \x1b[0m:   no such thing\n")
        with Path(env["MDC_SITE_LOG"]).open("a") as events:
            events.write(json.dumps({"event": "hello"}) + "\ntorn {\n")
        yield SimpleNamespace(poll=lambda: 7, returncode=7)

    @contextmanager
    def guarded(home: Path) -> Iterator[None]:
        seen["guarded"] = home
        yield

    monkeypatch.setattr(site, "running", running)
    monkeypatch.setattr(site, "guarded", guarded)
    kit.state.mkdir(exist_ok=True)
    (kit.state / "node-config.toml").write_text("left over")
    (kit.state / "node-config.toml").chmod(0o644)
    (kit.state / "events.jsonl").write_text('{"event": "hello"}\n')
    return told, seen


def start_it(
    kit: SiteKit, told: list[str], monkeypatch: pytest.MonkeyPatch, about: Any
) -> RunError:
    def ask(kit: SiteKit) -> tuple[dict[str, Any], float]:
        if isinstance(about, Exception):
            raise about
        return about, 0.0

    monkeypatch.setattr(site, "ask_coordinator", ask)
    with pytest.raises(RunError) as caught:
        start(kit, told.append)
    return caught.value


def test_a_node_is_started_and_its_words_are_shown(
    kit: SiteKit,
    started: tuple[list[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, seen = started
    error = start_it(kit, told, monkeypatch, {"registered": True})
    assert str(error) == (
        "berlin: the SuperNode ended with exit status 7. "
        f"The log is {kit.state / 'supernode.log'}. Start the site again"
    )
    assert told[1:] == [
        "a run starts or resumes: the coordinator knows that this site is online",
        "ERROR :   no such thing",
    ]
    assert seen["command"][:3] == [sys.executable, "-m", "mdc_flower.deployment.site.supernode"]
    assert not any("/srv/images" in part for part in seen["command"]), "every user could read it"
    assert seen["env"]["FLWR_HOME"] == str(kit.state / "flwr")
    assert seen["guarded"] == kit.state / "flwr"
    config = kit.state / "node-config.toml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert tomllib.loads(config.read_text()) == node_config(kit)


def test_a_site_whose_key_is_revoked_is_told_so(
    kit: SiteKit,
    started: tuple[list[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = start_it(kit, started[0], monkeypatch, {"registered": False})
    assert "no longer accepts this site's key" in str(error)
    error = start_it(kit, started[0], monkeypatch, RunError("no answer"))
    assert "ended with exit status 7" in str(error)


def test_a_node_that_was_killed_is_waited_for(
    kit: SiteKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([{"online": True}, {"online": True}, {"online": False}])
    monkeypatch.setattr(site, "ask_coordinator", lambda kit: (next(answers), 0.0))
    now = [0.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds)
    )
    monkeypatch.setattr(site, "time", clock)
    told: list[str] = []
    wait_until_offline(kit, told.append)
    assert told == ["waiting until the coordinator notices that the last SuperNode has ended"]
    assert now == [4.0]
    monkeypatch.setattr(site, "ask_coordinator", lambda kit: ({"online": True}, 0.0))
    wait_until_offline(kit, told.append)
    assert now[0] >= site.STILL_ONLINE_S


def test_the_lines_of_a_round() -> None:
    view = SiteView()
    assert view.line(TRAINING) == (
        "round 3: 2 epochs over 90 examples, learning rate 0.05 to 0.01 exponential"
    )
    # 5 of 20 steps took 2 s, so 15 more take 6 s; 100 examples in 2 s are 50 a second.
    assert view.line(PROGRESS) == (
        "round 3: epoch 1 of 2, step 5 of 20, learning rate 0.05, loss 0.5000, "
        "50 examples/s, about 6 s left"
    )
    view.line({**TRAINING, "local_epochs": 0, "local_steps": 20, "examples": None})
    assert view.line(PROGRESS).startswith("round 3: step 5 of 20, learning rate 0.05")
    trained = {"event": "trained", "round": 3, "train-seconds": 8.04, "train-loss": 0.25}
    assert view.line({**trained, "train-accuracy": 0.9}) == (
        "round 3: trained in 8.0 s, loss 0.2500, accuracy 0.9000; sending the update"
    )


def test_progress_without_its_plan_and_in_no_time() -> None:
    told = SiteView().line({**PROGRESS, "seconds": 0.0})
    assert told.startswith("round ?: epoch 1, step 5 of 20")
    assert told.endswith("about 0 s left")


def test_the_other_lines() -> None:
    view = SiteView()
    evaluated = {"event": "evaluated", "validation-accuracy": 0.5, "num-validation-examples": 8}
    assert (
        view.line(evaluated) == "last model: accuracy 0.5000 on 8 validation examples of this site"
    )
    # A site with few examples may have none to validate on.
    assert view.line({"event": "evaluated"}) == (
        "last model: not evaluated, because this site has no validation examples"
    )
    unwritten = {"event": "state-not-written", "round": 3, "state": "optimizer"}
    assert view.line(unwritten) == (
        "round 3: the optimizer's state could not be written; the next round begins without it"
    )
    assert view.line({"event": "app-refused", "reason": "x"}).endswith("the coordinator's app: x")
    assert view.line({"event": "failed", "message": "train", "error": "E: x"}) == (
        "train failed: E: x"
    )
    assert view.line({"event": "of a later version"}) == ""
    assert view.line({}) == ""


def test_a_site_tells_its_people_which_process_or_machine_has_ended() -> None:
    ended = {"event": "rank-ended", "rank": 3, "how": "SIGKILL"}
    assert SiteView().line(ended) == (
        "process 3 of this site ended (SIGKILL); all of its processes are started again"
    )
    lost = {"event": "machine-lost", "why": "machine 1 is silent"}
    assert SiteView().line(lost) == (
        "machine 1 is silent; all processes of this site are started again"
    )


@pytest.mark.parametrize("node_rank", [1, 2])
def test_a_machine_that_the_site_does_not_have_is_refused(kit: SiteKit, node_rank: int) -> None:
    with pytest.raises(ConfigError, match="the site has no such machine"):
        start_ranks(kit, node_rank, print)
