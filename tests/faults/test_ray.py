"""Simulations on Ray in which workers and the coordinator die, and sites hang or are slow."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from mdc_flower.engines.guardian import home_of
from strategies.aggregation.averaging import Update, by_examples, weighted_mean
from strategies.storage.model_files import StoredArrays
from strategies.storage.run_directory import CHECKPOINTS, UPDATES, read_history
from tests.faults import injector
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.runs import NUM_SITES, config_in, sha256, wait_until
from tests.integration.conftest import summary_of

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
MDC = "from mdc_flower.cli.main import app; app(prog_name='mdc')"


def mdc_run(run_dir: Path, faults: list[Fault], **keys: object) -> str:
    """Run `mdc run` on Ray with faults; return its output."""
    settings = [f"--set={key}={_setting(value)}" for key, value in _keys(run_dir, **keys).items()]
    done = subprocess.run(
        [sys.executable, "-c", MDC, "run", *settings],
        cwd=REPOSITORY,
        env={**os.environ, **injector.plan(run_dir.parent / "faults", faults)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _keys(run_dir: Path, **keys: object) -> dict[str, object]:
    return config_in(run_dir).to_flower() | {k.replace("_", "-"): v for k, v in keys.items()}


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@fault(
    "a Ray worker dies",
    "the engine is restarted, and the run is resumed inside the open round; no average leaves out "
    "a healthy site",
)
@fault(
    "coordinator killed under `mdc run`",
    "detected within seconds; the engine is restarted, and the run is resumed",
)
def test_a_dead_worker_or_coordinator_restarts_the_engine(tmp_path: Path, undisturbed: str) -> None:
    dies = Fault("training", "exit", {"round": 2, "site": "site-1"})
    killed = Fault("accepted", "kill", {"round": 3, "count": 2})
    said = mdc_run(tmp_path / "run", [dies, killed])
    assert "a worker of the simulation died" in said
    assert "the coordinator died" in said
    assert said.count("restart 1 of 3") == 2, "restarts count anew after a finished round"
    assert sha256(tmp_path / "run") == undisturbed
    lines = read_history(tmp_path / "run")
    assert all(len(line["participants"]) == NUM_SITES for line in lines)
    assert len(summary_of(tmp_path / "run")["resumes"]) == 2


@fault(
    "`mdc run` killed by SIGKILL, for example when memory runs out",
    "all processes that it started end, including Ray; `--resume` works at once and continues "
    "inside the open round",
)
def test_a_killed_command_leaves_no_process_behind(tmp_path: Path, undisturbed: str) -> None:
    """Start it as ``nohup ... &`` does, in a folder whose modules have the names of libraries."""
    run_dir, work = tmp_path / "run", tmp_path / "work"
    work.mkdir()
    for name in ("datasets", "types", "selectors"):
        (work / f"{name}.py").write_text("raise ImportError('this is the user's module')")
    hangs = Fault("training", "hang", {"round": 3, "site": "site-1"})
    env = {**os.environ, **injector.plan(tmp_path / "faults", [hangs])}
    settings = [f"--set={key}={_setting(value)}" for key, value in _keys(run_dir).items()]
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP INT; exec "$0" "$@"', sys.executable, "-P", "-c", MDC, "run",
         *settings],
        cwd=work, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        wait_until(lambda: (run_dir / "events.jsonl").exists(), 600)
        for kind in (signal.SIGHUP, signal.SIGINT):
            process.send_signal(kind)  # a closed terminal, and Ctrl-C
        wait_until(lambda: len(read_history(run_dir)) == 2, 600)
        wait_until((tmp_path / "faults" / "faults.0.happened").exists)
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in family)
        homes = {home for child in family if (home := home_of(child))}
        process.kill()
        _, alive = psutil.wait_procs(family, timeout=120)
        assert not alive
        assert not any(Path(home).exists() for home in homes), "Ray's files are still there"
    finally:
        process.kill()
        assert process.stderr is not None
        errors = process.communicate()[1]
        for child in family:
            if child.is_running():
                child.kill()
    assert "interrupted" not in errors
    done = subprocess.run(
        [sys.executable, "-P", "-c", MDC, "run", "--resume", str(run_dir)],
        cwd=work, env=env, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sha256(run_dir) == undisturbed


@fault(
    "a site hangs beyond the deadline",
    "the site is dropped and the others are averaged exactly; it takes part in the next round",
    "that site's update of that round",
)
def test_a_site_that_hangs_costs_the_round_its_update(tmp_path: Path) -> None:
    hangs = Fault("training", "hang", {"round": 2, "site": "site-1"})
    line = _run_without_one(tmp_path, hangs)
    assert line["late"] == {}
    assert all("site-1" in line["participants"] for line in read_history(tmp_path / "run")[2:])


@fault(
    "a site is slower than the deadline allows",
    "the site is dropped; its late reply is recorded and not used",
    "that site's update of that round",
)
def test_a_slow_site_is_late(tmp_path: Path) -> None:
    slow = Fault("training", "hang", {"round": 2, "site": "site-1"}, seconds=7.5)
    # Make a later round long enough for the late reply to arrive.
    meanwhile = Fault("training", "hang", {"round": 3, "site": "site-0"}, seconds=4.0)
    _run_without_one(tmp_path, slow, meanwhile)
    later = [line["late"] for line in read_history(tmp_path / "run")[1:]]
    assert {"site-1": 2} in later


def _run_without_one(folder: Path, *faults: Fault) -> dict[str, object]:
    """Run without site-1 in round 2; check that round's model; return its history line."""
    run_dir = folder / "run"
    mdc_run(
        run_dir,
        list(faults),
        round_deadline_s=6.0,
        keep_updates=True,
        keep_checkpoints=10,
        epoch_budget=4,
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
