"""Whole runs with growing rounds: whole epochs at sites of any size, and the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.engines.in_process import run_in_process
from strategies.common.errors import ConfigError
from strategies.storage.run_directory import SUMMARY, read_events, read_history
from tests.faults.injector import Fault
from tests.faults.runs import resumed, run_child, sha256
from tests.tiny import KEYS

NUM_SITES = 3
KILLED = -9


def config_in(run_dir: Path, **keys: Any) -> RunConfig:
    """Return a config of five growing rounds within four epochs, at sites of unequal size."""
    values: dict[str, Any] = {
        **KEYS,
        "batch-size": 1,
        "partition": "size-skew",
        "partition-size-ratio": 3.0,
        "num-sites": NUM_SITES,
        "output-dir": str(run_dir),
        "epochs": "growing",
        "first-local-epochs": 0.4,
        "num-rounds": 5,
        "epoch-budget": 4,
        "lr-peak": "cosine",
        "outer-optimizer": "momentum",
        "outer-nesterov": True,
        "outer-plain-last": 1,
        "track": "tensorboard",
    }
    return read_run_config(values | {key.replace("_", "-"): value for key, value in keys.items()})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that was never interrupted."""
    run_dir = tmp_path_factory.mktemp("growing") / "run"
    run_in_process(config_in(run_dir), NUM_SITES)
    return run_dir


def test_every_site_makes_the_epochs_of_the_budget_whatever_its_size(whole: Path) -> None:
    lines = read_history(whole)
    summary = json.loads((whole / SUMMARY).read_text())
    assert (summary["rounds"], summary["epochs"], summary["steps"]) == (5, 4, 0)
    (started,) = read_events(whole, "run-started")
    assert (started["unit"], started["budget"]) == ("parts", 4000)
    steps = {
        site: [line["participants"][site]["num-steps"] for line in lines]
        for site in lines[0]["participants"]
    }
    per_epoch = {site: sum(made) / 4 for site, made in steps.items()}
    assert len(set(per_epoch.values())) > 1, "sites of one size would show nothing"
    for site, made in steps.items():
        assert per_epoch[site] == lines[0]["participants"][site]["num-examples"]
        assert made[0] == max(1, int(0.4 * per_epoch[site]))
        assert made[-1] > made[0]


def test_the_history_of_peaks_falls_and_the_last_round_is_averaged_plainly(whole: Path) -> None:
    plans = [line["plan"] for line in read_history(whole)]
    peaks = [plan["lr_max"] for plan in plans]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0] / 2
    kept = {path.name.split(".")[0] for path in (whole / "checkpoints").glob("*-outer*")}
    assert kept == {"000004-outer"}


def test_a_killed_run_is_resumed_within_an_epoch_to_the_same_bits(
    tmp_path: Path, whole: Path
) -> None:
    config = config_in(tmp_path / "run")
    kill = Fault("accepted", "kill", {"round": 3, "count": 1})
    assert run_child(config, [kill], NUM_SITES) == KILLED
    assert len(read_history(tmp_path / "run")) == 2
    run_in_process(resumed(config), NUM_SITES)
    (event,) = read_events(tmp_path / "run", "run-resumed")
    plans = [line["plan"] for line in read_history(whole)]
    assert event["work_done"] == plans[2]["parts_before"] > 0
    assert event["work_done"] % 1000, "within an epoch"
    assert sha256(tmp_path / "run") == sha256(whole)


def test_a_run_that_is_given_more_goes_on_and_one_whose_rounds_would_shrink_is_refused(
    tmp_path: Path,
) -> None:
    config = config_in(tmp_path / "run")
    run_in_process(config, NUM_SITES)
    run_in_process(resumed(config, epoch_budget=7, num_rounds=6), NUM_SITES)
    lines = read_history(tmp_path / "run")
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert sum(line["plan"]["local_parts"] for line in lines) == 7000
    with pytest.raises(ConfigError, match="rounds would have to become shorter, not longer"):
        config_in(tmp_path / "run", num_rounds=30)
