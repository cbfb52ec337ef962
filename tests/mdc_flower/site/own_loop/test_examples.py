"""The examples of docs/own-loop.md: a plain script becomes a site's, and bash with numpy is one."""

import difflib
import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from strategies.storage.run_directory import read_history
from tests.own_loop import EXAMPLES, python, run_with_commands, write_digits

PLAIN, SITE = EXAMPLES / "train.py", EXAMPLES / "site_train.py"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a run config whose user modules are the examples."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(EXAMPLES)
    return {
        "output-dir": str(tmp_path / "run"),
        "epochs": "fixed",
        "local-epochs": 4,
        "epoch-budget": 8,
        "lr-max": 0.2,
    }


def test_a_script_of_60_lines_becomes_a_sites_by_15_changed_lines() -> None:
    plain, site = PLAIN.read_text().splitlines(), SITE.read_text().splitlines()
    changes = [
        max(last - first, new_last - new_first)
        for tag, first, last, new_first, new_last in difflib.SequenceMatcher(
            None, plain, site, autojunk=False
        ).get_opcodes()
        if tag != "equal"
    ]
    assert len(plain) <= 60
    assert sum(changes) <= 15


@pytest.mark.integration
def test_the_plain_script_trains(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits.npz")
    done = subprocess.run(
        [sys.executable, str(PLAIN), str(tmp_path / "digits.npz")],
        capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert float(done.stdout.split()[-1]) > 0.85


@pytest.mark.integration
def test_two_sites_train_with_the_script_of_their_own(tmp_path: Path, keys: dict[str, Any]) -> None:
    sites, counts = {}, {}
    for number, name in enumerate(("north", "south")):
        counts[name] = write_digits(tmp_path / f"{name}.npz", number)
        command = python(SITE, tmp_path / f"{name}.npz")
        sites[name] = {"command": command, "state": str(tmp_path / name)}
    run_with_commands(keys | {"model": "site_train:network", "site-evaluation": True}, sites)
    history = read_history(tmp_path / "run")
    assert [line["round"] for line in history] == [1, 2]
    assert history[-1]["evaluation"]["test-accuracy"] > 0.85
    assert history[-1]["site_evaluation"]["validation-accuracy"] > 0.85
    for name, metrics in history[-1]["participants"].items():
        held_out = counts[name] // 5
        assert metrics["num-validation-examples"] == held_out
        assert metrics["num-examples"] == counts[name] - held_out
        assert metrics["num-steps"] == 4 * math.ceil((counts[name] - held_out) / 32)
        assert 0 < metrics["train-loss"] < 1


def test_a_job_in_bash_and_numpy_trains_to_the_same_bits_again(
    tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON", sys.executable)
    write_digits(tmp_path / "digits.npz")
    site = {"command": f"{EXAMPLES / 'job.sh'} {tmp_path / 'digits.npz'}"}
    models = []
    for run in ("first", "second"):
        own = keys | {"model": "softmax:network", "output-dir": str(tmp_path / run)}
        run_with_commands(own, {"north": site | {"state": str(tmp_path / f"state-{run}")}})
        models.append((tmp_path / run / "global-model.safetensors").read_bytes())
    assert read_history(tmp_path / "first")[-1]["evaluation"]["test-accuracy"] > 0.85
    assert hashlib.sha256(models[0]).hexdigest() == hashlib.sha256(models[1]).hexdigest()
