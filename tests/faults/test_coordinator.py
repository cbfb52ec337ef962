"""The coordinator dies or fails at any point of a run, and the run resumes where it was."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mdc_flower.config import RunConfig
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.engines.supervisor import supervise
from strategies.common.errors import EngineError
from strategies.storage.lock import LockedError, read_owner
from strategies.storage.run_directory import (
    BEST_MODEL,
    EVENTS,
    OPEN_ROUND,
    read_events,
    read_history,
)
from tests.faults import injector
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.runs import (
    NUM_ROUNDS,
    NUM_SITES,
    child,
    config_in,
    resumed,
    run_child,
    sha256,
    wait_until,
)
from tests.integration.conftest import summary_of

KILLED = -9
RESUME = "resumed from the newest checkpoint"
# The round loop's own tests check each of these points on an in-memory grid. Real kills at all of
# them are slow.
KILLS = [
    pytest.param(
        Fault("file-written", "kill", {"path": "000000."}), 0,
        marks=[fault(
            "coordinator killed before the first checkpoint", "the run starts from the beginning"
        ), pytest.mark.slow],
        id="first-checkpoint",
    ),
    pytest.param(
        Fault("sending", "kill", {"round": 2}), 0,
        marks=[
            fault("coordinator killed before it sends the requests of a round", RESUME),
            pytest.mark.slow,
        ],
        id="before-sending",
    ),
    pytest.param(
        Fault("accepted", "kill", {"round": 2, "count": 1}), 1,
        marks=fault(
            "coordinator killed while it waits, after it stored one update",
            f"{RESUME}; only the sites without a stored update are asked",
        ),
        id="one-update-in",
    ),
    pytest.param(
        Fault("file-written", "kill", {"path": "open-round"}), 0,
        marks=[fault(
            "coordinator killed while it stores an update", f"{RESUME}; that site is asked again"
        ), pytest.mark.slow],
        id="writing-an-update",
    ),
    pytest.param(
        Fault("folding", "kill", {"round": 2}), 3,
        marks=[fault(
            "coordinator killed before it averages, after it stored all updates",
            f"{RESUME}; no site is asked",
        ), pytest.mark.slow],
        id="before-folding",
    ),
    pytest.param(
        Fault("array-read", "kill", {"path": "open-round"}), 3,
        marks=[
            fault(
                "coordinator killed while it averages",
                f"{RESUME}; the stored updates are averaged again",
            ),
            pytest.mark.slow,
        ],
        id="folding",
    ),
    pytest.param(
        Fault("file-written", "kill", {"path": "000002."}), 3,
        marks=[fault(
            "coordinator killed while it writes a checkpoint's model",
            "resumed from the previous checkpoint",
        ), pytest.mark.slow],
        id="checkpoint-model",
    ),
    pytest.param(
        Fault("checkpoint-model-written", "kill", {"round": 2}), 3,
        marks=fault(
            "coordinator killed between writing a checkpoint's model and its description",
            "resumed from the previous checkpoint",
        ),
        id="checkpoint-description",
    ),
    pytest.param(
        Fault("round-folded", "kill", {"round": 2}), 0,
        marks=fault(
            "coordinator killed between the checkpoint of a round and its evaluation",
            f"{RESUME}; its model is evaluated, and the history gets its line",
        ),
        id="evaluation",
    ),
    pytest.param(
        Fault("checkpoint-written", "kill", {"round": 2}), 0,
        marks=[fault(
            "coordinator killed between the checkpoint and the history line of a round",
            f"{RESUME}, which contains the line",
        ), pytest.mark.slow],
        id="history-line",
    ),
    pytest.param(
        Fault("round-finished", "kill", {"round": 2}), 0,
        marks=[fault("coordinator killed between two rounds", RESUME), pytest.mark.slow],
        id="between-rounds",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("killed_at", "updates_kept"), KILLS)
def test_a_killed_coordinator_is_resumed_to_the_same_bits(
    tmp_path: Path, undisturbed_run: Path, killed_at: Fault, updates_kept: int
) -> None:
    config = config_in(tmp_path / "run")
    assert run_child(config, [killed_at]) == KILLED
    assert summary_of(tmp_path / "run")["status"] == "running"

    run_in_process(resumed(config), NUM_SITES)

    assert sha256(tmp_path / "run") == sha256(undisturbed_run)
    best = [(run_dir / BEST_MODEL).read_bytes() for run_dir in (tmp_path / "run", undisturbed_run)]
    assert best[0] == best[1]
    lines = read_history(tmp_path / "run")
    evaluations = [line["evaluation"] for line in lines]
    assert evaluations == [line["evaluation"] for line in read_history(undisturbed_run)]
    assert [line["round"] for line in lines] == list(range(1, NUM_ROUNDS + 1))
    assert all(sorted(line["participants"]) == ["site-0", "site-1", "site-2"] for line in lines)
    assert summary_of(tmp_path / "run")["status"] == "finished"
    # A kill does not change the bytes of a round: one model to each of three sites and back.
    (exchanged,) = {(line["sent_bytes"], line["received_bytes"]) for line in lines}
    assert exchanged[0] == exchanged[1] > 0
    assert list((tmp_path / "run" / OPEN_ROUND).iterdir()) == []
    begun_again = read_events(tmp_path / "run", "run-started")[-1]
    asked = [
        event
        for event in read_events(tmp_path / "run", "round-started")
        if event["time"] >= begun_again["time"]
    ]
    assert len(asked[0]["kept"]) == updates_kept
    assert len(asked[0]["sites"]) == NUM_SITES - updates_kept


@fault(
    "an exception in the ServerApp",
    "`mdc run` restarts the run from the newest checkpoint, at most `max-restarts` times",
)
def test_an_exception_in_the_server_app_restarts_the_run(
    tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts = _supervise(
        config_in(tmp_path / "run"),
        tmp_path,
        [Fault("folding", "raise", {"round": 2})],
        monkeypatch,
    )
    assert restarts == ["injected"]
    assert sha256(tmp_path / "run") == undisturbed
    (resume,) = summary_of(tmp_path / "run")["resumes"]
    assert resume["rounds_done"] == 1


@fault(
    "an exception in the ServerApp, every time",
    "`mdc run` gives up after `max-restarts` restarts, with exit status 1, and prints the command "
    "to resume",
    "only the rounds that were not finished",
)
def test_a_run_that_fails_each_time_is_given_up(
    tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path / "run", max_restarts=2)
    always = Fault("folding", "raise", {"round": 3}, repeat=True)
    with pytest.raises(EngineError, match="died 3 times without finishing a round: injected"):
        _supervise(config, tmp_path, [always], monkeypatch)
    assert summary_of(tmp_path / "run")["status"] == "failed"
    monkeypatch.undo()
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == undisturbed


@fault(
    "a second coordinator in the same run directory",
    "the second is refused, with the process id of the first; the first continues",
)
def test_a_second_coordinator_is_refused(tmp_path: Path, undisturbed: str) -> None:
    config = config_in(tmp_path / "run")
    with child(config, [Fault("sending", "hang", {"round": 3})]) as first:
        wait_until(lambda: len(read_history(tmp_path / "run")) == 2)
        with pytest.raises(LockedError, match=f"process {first.pid} on "):
            run_in_process(resumed(config), NUM_SITES)
        assert read_owner(tmp_path / "run")["pid"] == first.pid
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == undisturbed


def test_the_events_record_each_process_of_a_run(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run")
    run_child(config, [Fault("round-finished", "kill", {"round": 2})])
    run_in_process(resumed(config), NUM_SITES)
    kinds = [
        json.loads(line)["event"] for line in (tmp_path / "run" / EVENTS).read_text().splitlines()
    ]
    assert kinds.count("run-started") == 2
    assert kinds.count("run-resumed") == 1
    assert kinds.count("run-ended") == 1


def _supervise(
    config: RunConfig, folder: Path, faults: list[Fault], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Run under supervision with faults in this process; return the error of each restart."""
    for name, value in injector.plan(folder / "faults", faults).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mdc_flower.engines.supervisor.FIRST_PAUSE_S", 0.0)
    restarts: list[str] = []
    launch: Callable[[RunConfig], None] = lambda config: run_in_process(config, NUM_SITES)  # noqa: E731
    supervise(config, launch, lambda error, number, pause_s: restarts.append(str(error)))
    return restarts
