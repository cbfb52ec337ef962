"""Simulated on Ray: workers and the coordinator die, sites hang and are slow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from strategies.averaging import Update, by_examples, weighted_mean
from strategies.journal.model_files import StoredArrays
from strategies.journal.run_directory import CHECKPOINTS, UPDATES, read_history
from tests.faults import injector
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.runs import NUM_SITES, config_in, sha256
from tests.integration.conftest import summary_of

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
MDC = "from simulations.cli import app; app(prog_name='mdc')"


def mdc_run(run_dir: Path, faults: list[Fault], **keys: object) -> str:
    """Run on Ray with `mdc run`, with faults; return what it printed."""
    values = config_in(run_dir).to_flower() | {k.replace("_", "-"): v for k, v in keys.items()}
    settings = [part for key, value in values.items() for part in ("--set", _setting(key, value))]
    done = subprocess.run(
        [sys.executable, "-c", MDC, "run", *settings],
        cwd=REPOSITORY,
        env={**os.environ, **injector.plan(run_dir.parent / "faults", faults)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _setting(key: str, value: object) -> str:
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


@fault(
    "a Ray actor dies",
    "the engine is restarted and the run resumed, inside the open round; no average without it",
)
def test_a_dead_actor_restarts_the_engine(tmp_path: Path, undisturbed: str) -> None:
    dies = Fault("training", "exit", {"round": 2, "site": "site-1"})
    said = mdc_run(tmp_path / "run", [dies])
    assert "a worker of the simulation died" in said
    assert "restart 1 of 3" in said
    assert sha256(tmp_path / "run") == undisturbed
    lines = read_history(tmp_path / "run")
    assert all(len(line["participants"]) == NUM_SITES for line in lines)
    assert len(summary_of(tmp_path / "run")["resumes"]) == 1


@fault(
    "coordinator killed under `mdc run`",
    "noticed within seconds; the engine is restarted and the run resumed",
)
def test_a_killed_coordinator_is_restarted(tmp_path: Path, undisturbed: str) -> None:
    said = mdc_run(tmp_path / "run", [Fault("update-accepted", "kill", {"round": 3, "count": 2})])
    assert "the coordinator died" in said
    assert sha256(tmp_path / "run") == undisturbed


@fault(
    "a site hangs beyond the deadline",
    "dropped; the others are averaged exactly, and it is asked in the next round as any other",
    "that site's update of the round",
)
def test_a_site_that_hangs_costs_the_round_its_update(tmp_path: Path) -> None:
    hangs = Fault("training", "hang", {"round": 2, "site": "site-1"})
    line = _run_without_one(tmp_path, hangs)
    assert line["late"] == {}
    assert all("site-1" in line["participants"] for line in read_history(tmp_path / "run")[2:])


@fault(
    "a site is ten times slower than the deadline allows",
    "dropped; its late reply is recorded as late and left out",
    "that site's update of the round",
)
def test_a_slow_site_is_late(tmp_path: Path) -> None:
    slow = Fault("training", "hang", {"round": 2, "site": "site-1"}, seconds=7.5)
    # A later round lasts long enough for the late reply to come in.
    meanwhile = Fault("training", "hang", {"round": 4, "site": "site-0"}, seconds=4.0)
    _run_without_one(tmp_path, slow, meanwhile)
    later = [line["late"] for line in read_history(tmp_path / "run")[1:]]
    assert {"site-1": 2} in later


def _run_without_one(folder: Path, *faults: Fault) -> dict[str, object]:
    """Run with site-1 away from round 2; hold that round's model; return its line."""
    run_dir = folder / "run"
    mdc_run(
        run_dir,
        list(faults),
        round_deadline_s=6.0,
        keep_updates=True,
        keep_checkpoints=10,
        epoch_budget=5,
    )
    lines = read_history(run_dir)
    assert lines[1]["dropped"] == {"site-1": "no reply within 6 s"}
    assert sorted(lines[1]["participants"]) == ["site-0", "site-2"]
    (model,) = (run_dir / CHECKPOINTS).glob("000002.*.safetensors")
    kept = [StoredArrays(path) for path in (run_dir / UPDATES / "round-00002").iterdir()]
    updates = [
        Update(one.metadata["site"], one.metadata["num-examples"], one, {})
        for one in sorted(kept, key=lambda one: str(one.metadata["site"]))
    ]
    assert [update.site for update in updates] == ["site-0", "site-2"]
    expected = weighted_mean(updates, by_examples)
    for name, array in StoredArrays(model).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    return dict(lines[1])
