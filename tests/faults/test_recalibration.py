"""The coordinator dies while BatchNorm statistics are recomputed; the final bits are the same."""

from pathlib import Path
from typing import Any

import pytest

from mdc_flower.engines.in_process import run_in_process
from strategies.exchange.messages import STATISTICS
from strategies.storage.run_directory import (
    OPEN_RECALIBRATION,
    RECALIBRATIONS,
    read_events,
    read_history,
)
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.runs import NUM_ROUNDS, NUM_SITES, config_in, resumed, run_child, sha256
from tests.integration.conftest import summary_of

KILLED = -9
KEYS: dict[str, Any] = {
    "job": "classification",  # of the tiny data set
    "model": "tests.tiny:normalized",
    "batch_norm": "recalibrate",
}
KILLS = [
    pytest.param(
        Fault("round-finished", "kill", {"round": NUM_ROUNDS}), 0,
        marks=[fault(
            "coordinator killed between the last round and the recalibration",
            "resumed after the last round; the recalibration takes place",
        ), pytest.mark.slow],
        id="before-it",
    ),
    pytest.param(
        Fault("accepted", "kill", {"kind": STATISTICS, "count": 1}), 1,
        marks=fault(
            "coordinator killed in the recalibration, after it stored one site's statistics",
            "resumed after the last round; only the sites without stored statistics are asked",
        ),
        id="one-in",
    ),
    pytest.param(
        Fault("folding", "kill", {"kind": STATISTICS}), 3,
        marks=[fault(
            "coordinator killed before it combines the sites' statistics",
            "resumed after the last round; no site is asked",
        ), pytest.mark.slow],
        id="before-folding",
    ),
    pytest.param(
        Fault("recalibrated", "kill"), 3,
        marks=[fault(
            "coordinator killed before it writes the new statistics",
            "resumed after the last round; no site is asked",
        ), pytest.mark.slow],
        id="before-writing",
    ),
    pytest.param(
        Fault("file-written", "kill", {"path": f"/{RECALIBRATIONS}/"}), 3,
        marks=[fault(
            "coordinator killed while it writes the new statistics",
            "resumed after the last round; no site is asked",
        ), pytest.mark.slow],
        id="writing",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def recalibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a fault-free run with recalibration."""
    run_dir: Path = tmp_path_factory.mktemp("recalibrated") / "run"
    run_in_process(config_in(run_dir, **KEYS), NUM_SITES)
    return run_dir


@pytest.mark.parametrize(("killed_at", "kept"), KILLS)
def test_a_coordinator_killed_in_the_recalibration_gives_the_same_bits_when_resumed(
    tmp_path: Path, recalibrated: Path, killed_at: Fault, kept: int
) -> None:
    config = config_in(tmp_path / "run", **KEYS)
    assert run_child(config, [killed_at]) == KILLED
    assert summary_of(tmp_path / "run")["status"] == "running"
    assert sha256(tmp_path / "run") != sha256(recalibrated)

    run_in_process(resumed(config), NUM_SITES)

    assert sha256(tmp_path / "run") == sha256(recalibrated)
    assert len(read_history(tmp_path / "run")) == NUM_ROUNDS
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "finished"
    for key in ("sent-bytes", "received-bytes"):
        assert summary[key] == summary_of(recalibrated)[key]
    assert list(summary["recalibration"]["participants"]) == ["site-0", "site-1", "site-2"]
    assert list((tmp_path / "run" / OPEN_RECALIBRATION).iterdir()) == []
    begun = read_events(tmp_path / "run", "recalibration-started")[-1]
    assert (len(begun["kept"]), len(begun["sites"])) == (kept, NUM_SITES - kept)
