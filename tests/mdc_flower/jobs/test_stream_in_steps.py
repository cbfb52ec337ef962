"""Runs on streams that count steps: the same batches, whatever the lengths of the rounds."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from mdc_flower.cli.launching import resumed_config
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.engines.in_process import run_in_process
from strategies.common.errors import ConfigError
from strategies.common.files import seal
from strategies.storage.run_directory import CONFIG, SUMMARY, read_events, read_history
from tests import tiny_jobs
from tests.faults.injector import Fault
from tests.faults.runs import resumed, run_child, sha256

NUM_SITES = 2
KILLED = -9


def config_in(run_dir: Path, job: str = "stream", **keys: Any) -> RunConfig:
    """Return a config of a run in steps; with ILE, the steps double in each round."""
    values = {
        "job": f"tests.tiny_jobs:{job}",
        "num-sites": NUM_SITES,
        "output-dir": str(run_dir),
        "ile-epsilon": 100.0,
        "track": "",
    }
    return read_run_config(values | {key.replace("_", "-"): value for key, value in keys.items()})


def steps_of(run_dir: Path) -> list[int]:
    """Return the steps of each round, as every site has made them."""
    lines = read_history(run_dir)
    for line in lines:
        made = {metrics["num-steps"] for metrics in line["participants"].values()}
        assert made == {line["plan"]["local_steps"]}
    return [line["plan"]["local_steps"] for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run with ILE that was never interrupted."""
    run_dir = tmp_path_factory.mktemp("steps") / "run"
    run_in_process(config_in(run_dir, local_steps=1, step_budget=9), NUM_SITES)
    return run_dir


def test_ile_doubles_the_steps_within_the_budget_and_the_run_says_so(whole: Path) -> None:
    assert steps_of(whole) == [1, 2, 4, 2]
    summary = json.loads((whole / SUMMARY).read_text())
    assert (summary["rounds"], summary["epochs"], summary["steps"]) == (4, 0, 9)
    (started,) = read_events(whole, "run-started")
    assert (started["unit"], started["budget"]) == ("steps", 9)


@pytest.mark.parametrize(
    "keys",
    [
        {"local_steps": 1, "step_budget": 9},
        {"local_steps": 1, "ile_max_steps": 3, "step_budget": 9},
        {"epochs": "spread", "num_rounds": 4, "step_budget": 9},
        {
            "epochs": "qsr", "local_steps": 2, "qsr_alpha": 0.05, "lr_shape": "global-cosine",
            "step_budget": 9,
        },
    ],
    ids=["ile", "ile-to-a-maximum", "spread", "qsr"],
)  # fmt: skip
def test_a_stream_is_read_without_gap_or_overlap_by_rounds_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(tiny_jobs, "seen", seen)
    run_in_process(config_in(tmp_path / "run", "recorded_stream", num_sites=1, **keys), 1)
    steps = steps_of(tmp_path / "run")
    assert sum(steps) == 9
    assert len(set(steps)) > 1, "rounds of one length would show nothing"
    # The check of the job reads the beginning, too; the rounds' own batches of 4 come last.
    assert [round(value * 7) for value in seen[-36:]] == [number % 7 for number in range(36)]


def test_a_killed_run_is_resumed_at_its_place_to_the_same_bits(tmp_path: Path, whole: Path) -> None:
    config = config_in(tmp_path / "run", local_steps=1, step_budget=9)
    kill = Fault("accepted", "kill", {"round": 3, "count": 1})
    assert run_child(config, [kill], NUM_SITES) == KILLED
    assert steps_of(tmp_path / "run") == [1, 2]
    run_in_process(resumed(config), NUM_SITES)
    assert steps_of(tmp_path / "run") == [1, 2, 4, 2]
    assert sha256(tmp_path / "run") == sha256(whole)


def test_a_larger_budget_ends_as_if_it_had_been_there_from_the_beginning(
    tmp_path: Path, whole: Path
) -> None:
    config = config_in(tmp_path / "run", local_steps=1, step_budget=7)
    run_in_process(config, NUM_SITES)
    run_in_process(resumed(config, step_budget=9), NUM_SITES)
    assert steps_of(tmp_path / "run") == [1, 2, 4, 2]
    assert sha256(tmp_path / "run") == sha256(whole)


def as_earlier(run_dir: Path) -> None:
    """Turn a run directory into that of an earlier version, which had fewer keys."""

    def config(values: dict[str, Any]) -> dict[str, Any]:
        new = {"step-budget", "ile-max-steps"}
        kept = {key: value for key, value in values.items() if key not in new}
        return kept | {"epochs": "ile", "epoch-budget": 60}

    path = run_dir / CONFIG
    path.write_text(tomli_w.dumps(config(tomllib.loads(path.read_text()))))
    for path in (run_dir / "checkpoints").glob("*.json"):
        description = json.loads(path.read_text())
        done = description.pop("work")["rounds_done"]
        description["epochs"] = {"local_epochs": 5, "epochs_used": 0, "rounds_done": done}
        description["run"]["config"] = config(description["run"]["config"])
        if description["record"]:
            del description["record"]["plan"]["steps_before"]
            description["record"]["plan"]["version"] = 1
        path.unlink()
        seal(path.parent, f"{done:06d}", ".json", json.dumps(description).encode())


def test_a_run_of_an_earlier_version_in_steps_goes_on_as_it_was(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"epochs": "fixed", "local_steps": 2}
    run_in_process(config_in(tmp_path / "whole", num_rounds=4, **keys), NUM_SITES)
    run_in_process(config_in(tmp_path / "run", num_rounds=2, **keys), NUM_SITES)
    as_earlier(tmp_path / "run")
    config = resumed_config(tmp_path / "run", None, ["num-rounds=4"], {})
    run_in_process(config, NUM_SITES)
    assert steps_of(tmp_path / "run") == [2, 2, 2, 2]
    assert sha256(tmp_path / "run") == sha256(tmp_path / "whole")


def test_a_stream_in_a_run_that_counts_epochs_is_refused_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a stream has no epochs") as caught:
        run_in_process(config_in(tmp_path / "run"), NUM_SITES)
    assert caught.value.exit_code == 2
    assert "local-steps, and num-rounds or step-budget" in str(caught.value)
