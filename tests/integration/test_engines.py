"""The same seed gives the same bits, in a second run and on every engine."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from mdc_flower.config import read_run_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.engines.ray_superlink import run_on_ray
from strategies.common.errors import EngineError, RunError
from strategies.storage.run_directory import BEST_MODEL, GLOBAL_MODEL, read_history
from tests import tiny_jobs
from tests.integration.conftest import other_weights, small_config

pytestmark = pytest.mark.integration

KEYS = ["model=small-cnn", "epoch-budget=4", "local-epochs=1", "ile-epsilon=1.0", "augment=crop"]


def mdc(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run the `mdc` command in a separate process."""
    code = "from mdc_flower.cli.main import app; app(prog_name='mdc')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


def run(engine: str, output: Path, settings: Sequence[str] = KEYS, seed: int = 1) -> Path:
    """Run `mdc run`; return the run directory."""
    options = [part for setting in settings for part in ("--set", setting)]
    done = mdc(
        "run", *options, "--sites", "3", "--seed", str(seed), "--engine", engine,
        "--output", str(output), cwd=output.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def sha256(run_dir: Path, name: str = GLOBAL_MODEL) -> str:
    return hashlib.sha256((run_dir / name).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("in-process", tmp_path_factory.mktemp("engines") / "in-process")


def test_ray_and_in_process_give_the_same_bits(in_process: Path, tmp_path: Path) -> None:
    on_ray = run("ray", tmp_path / "ray")
    assert sha256(on_ray) == sha256(in_process)
    assert sha256(on_ray, BEST_MODEL) == sha256(in_process, BEST_MODEL)
    plans = [[line["plan"] for line in read_history(one)] for one in (on_ray, in_process)]
    assert plans[0] == plans[1]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["labels", "line", "pixels", "texts"])
def test_each_other_shipped_job_gives_the_same_bits_on_ray_and_in_process(
    job: str, tmp_path: Path
) -> None:
    keys = {**tiny_jobs.KEYS, "job": f"tests.tiny_jobs:{job}", "site-evaluation": True}
    keys["initial-model"] = other_weights(tmp_path / "weights", read_run_config(keys))
    places = [tmp_path / "ray", tmp_path / "in-process"]
    for_ray, for_here = (
        read_run_config({**keys, "num-sites": 3, "output-dir": str(place)}) for place in places
    )
    run_on_ray(for_ray, 3, 2)
    run_in_process(for_here, 3)
    for model in (GLOBAL_MODEL, BEST_MODEL):
        assert sha256(places[0], model) == sha256(places[1], model)
    for key in ("plan", "site_evaluation"):
        both = [[line[key] for line in read_history(place)] for place in places]
        assert both[0] == both[1]


def test_a_run_whose_sites_keep_their_states_goes_on_with_them_on_ray(tmp_path: Path) -> None:
    keys = ["model=mlp", "max-train-examples=100", "epochs=fixed", "local-epochs=1"]
    keys += ["optimizer-state=keep", "epoch-budget=3"]
    whole = run("in-process", tmp_path / "whole", keys)
    half = run("in-process", tmp_path / "half", [*keys, "epoch-budget=1"])
    resume = ("--resume", str(half), "--set", "epoch-budget=3", "--engine", "ray")
    done = mdc("run", *resume, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sha256(half) == sha256(whole)
    assert [line["began_anew"] for line in read_history(half)] == [[], [], []]


def test_another_seed_gives_other_bits(in_process: Path, tmp_path: Path) -> None:
    assert sha256(run("in-process", tmp_path / "other", seed=2)) != sha256(in_process)


def test_ile_doubles_and_the_budget_is_used_to_the_epoch(in_process: Path) -> None:
    # 1, doubled to 2, doubled to 4 but limited to the 1 that is left of the budget of 4.
    assert [line["plan"]["local_epochs"] for line in read_history(in_process)] == [1, 2, 1]


def test_a_run_without_a_quorum_on_ray_exits_with_3_and_says_why(tmp_path: Path) -> None:
    """The learning rate is so high that every reply has values that are not finite."""
    done = mdc(
        "run", "--set", "model=mlp", "--set", "lr-max=1e30", "--sites", "2", "--set",
        "epoch-budget=1", "--output", str(tmp_path / "run"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    assert "round 1 has too few updates, after 3 attempts" in done.stderr
    assert f"to resume: mdc run --resume {tmp_path / 'run'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_does_not_come_up_is_named_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="engine did not start: ActorPool is empty") as caught:
        run_on_ray(small_config(tmp_path / "run"), num_sites=3, num_cpus=2, gpus_per_site=1000.0)
    assert not isinstance(caught.value, EngineError), "another start would not help"


@pytest.mark.parametrize(
    ("engine", "kind"), [("ray", signal.SIGINT), ("in-process", signal.SIGTERM)]
)
def test_an_interrupted_run_exits_with_130_and_leaves_no_process(
    tmp_path: Path, engine: str, kind: signal.Signals
) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", "from mdc_flower.cli.main import app; app(prog_name='mdc')",
         "run", "--engine", engine, "--sites", "2", "--set", "epoch-budget=100000",
         "--output", str(run_dir)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    _wait_for(lambda: (run_dir / "history.jsonl").exists() and read_history(run_dir), process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in family) == (engine == "ray")

    process.send_signal(kind)
    _, errors = process.communicate(timeout=300)

    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def _wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("the condition did not hold within 600 s")
