"""Going on with a run: what may change, what is refused, and the same bits as without a stop."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from mdc_flower import __version__
from mdc_flower.cli.launching import resumed_config
from mdc_flower.common.local_work import of_this_version
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.coordinator.resume import changed_keys, changed_machines, check_resumable
from mdc_flower.data import load_dataset
from mdc_flower.jobs.task import load_site_task, load_task
from strategies.common.errors import ConfigError
from strategies.method.local_work import Fixed, Horizon
from strategies.storage.run_directory import (
    CONFIG,
    SUMMARY,
    read_events,
    read_history,
)
from tests.mdc_flower.commands import files_below, mdc, model_sha256, run_small
from tests.mdc_flower.test_config import OTHER_VALUES

LAB = """
from pathlib import Path
import numpy as np
from mdc_flower.data import DataSet, Examples

def letters():
    count = int(Path("count.txt").read_text())
    images = Examples(np.zeros((count, 1, 8, 8), np.uint8), np.arange(count) % 10)
    return DataSet("letters", images, images, list("abcdefghij"))
"""
NO_OPTIONS: dict[str, Any] = {"num-sites": None, "seed": None, "output-dir": None}


# What may change

FREE = {
    key: OTHER_VALUES[key]
    for key in (
        "data-root",
        "deadline-factor",
        "epoch-budget",
        "keep-checkpoints",
        "keep-updates",
        "longest-round-s",
        "max-restarts",
        "max-round-retries",
        "min-sites",
        "num-rounds",
        "quorum-patience-s",
        "round-deadline-s",
        "track",
        "wait-for-sites-s",
    )
}
SILENT = {key: OTHER_VALUES[key] for key in ("output-dir", "resume")}
BOUND = {key: OTHER_VALUES[key] for key in OTHER_VALUES if key not in {**FREE, **SILENT}}
del BOUND["step-budget"]  # it may change, and needs other keys
BOUND |= {"local-steps": 100, "ile-max-steps": 400, "outer-lr": 0.5, "keep": "head.*"}
NEEDED: dict[str, dict[str, Any]] = {
    "local-steps": {"epochs": "fixed", "num-rounds": 3},
    "ile-max-steps": {"local-steps": 10, "step-budget": 600},
    "outer-lr": {"outer-optimizer": "adam"},
    "keep": {"site-evaluation": True},
}


def test_nothing_has_changed_where_nothing_was_set() -> None:
    assert changed_keys(RunConfig().to_flower(), RunConfig()) == {}


@pytest.mark.parametrize("key", FREE)
def test_a_key_about_ends_waits_and_files_may_change(key: str) -> None:
    before = RunConfig().to_flower()
    now = read_run_config({key: FREE[key]})
    assert changed_keys(before, now) == {key: [before[key], FREE[key]]}


def test_a_budget_in_steps_may_change() -> None:
    before = read_run_config({"local-steps": 10, "step-budget": 600}).to_flower()
    now = read_run_config(before | {"step-budget": 900})
    assert changed_keys(before, now) == {"step-budget": [600, 900]}


def test_a_run_cannot_go_on_in_another_unit() -> None:
    spread = {"epochs": "spread", "num-rounds": 3}
    in_epochs = read_run_config(spread | {"epoch-budget": 9})
    in_steps = read_run_config(spread | {"epoch-budget": 0, "step-budget": 900})
    for before, now in ((in_epochs, in_steps), (in_steps, in_epochs)):
        with pytest.raises(ConfigError, match="cannot change what it counts") as caught:
            changed_keys(before.to_flower(), now)
        assert (caught.value.got, caught.value.expected) == (now.unit, before.unit)


def test_a_run_of_an_earlier_version_in_steps_had_rounds_of_one_length() -> None:
    earlier = RunConfig().to_flower() | {"local-steps": 10, "num-rounds": 3, "epoch-budget": 6}
    del earlier["step-budget"], earlier["ile-max-steps"]
    assert earlier["epochs"] == "ile", "which had no effect"
    config = read_run_config(of_this_version(earlier))
    assert config.recipe().controller == Fixed(10)
    assert config.recipe().horizon == Horizon(3, None)
    assert changed_keys(earlier, config) == {}
    with pytest.raises(ConfigError, match="cannot change this key"):
        changed_keys(earlier, config.model_copy(update={"epochs": "ile"}))


def test_other_configs_of_an_earlier_version_stay_as_they_are() -> None:
    earlier = RunConfig().to_flower()
    del earlier["step-budget"]
    assert of_this_version(earlier) == earlier
    now = read_run_config({"local-steps": 10, "step-budget": 600}).to_flower()
    assert of_this_version(now) == now


@pytest.mark.parametrize(("optimizer", "lr"), [("average", 1.0), ("momentum", 1.0), ("adam", 0.01)])
def test_an_outer_learning_rate_that_is_named_is_the_default_it_is_equal_to(
    optimizer: str, lr: float
) -> None:
    left = read_run_config({"outer-optimizer": optimizer})
    named = left.to_flower() | {"outer-lr": lr}
    assert changed_keys(named, left) == {}
    assert changed_keys(left.to_flower(), read_run_config(named)) == {}


def test_an_outer_momentum_that_is_named_is_the_automatic_one_that_it_is_equal_to() -> None:
    # 1 - sqrt(2 / 8) = 1/2; without a number of rounds, 0.9 as in earlier versions.
    for rounds, momentum in ((8, 0.5), (0, 0.9)):
        keys = {"outer-optimizer": "momentum", "num-rounds": rounds}
        left, named = read_run_config(keys), read_run_config(keys | {"outer-momentum": momentum})
        assert changed_keys(named.to_flower(), left) == {}
        assert changed_keys(left.to_flower(), named) == {}
        with pytest.raises(ConfigError, match="cannot change this key"):
            changed_keys(left.to_flower() | {"outer-momentum": 0.7}, left)


def test_a_run_of_an_earlier_version_that_averages_goes_on_with_any_default_momentum() -> None:
    earlier = RunConfig().to_flower() | {"outer-momentum": 0.9}
    assert changed_keys(earlier, RunConfig()) == {}


def test_all_changes_are_returned_in_the_order_of_their_names() -> None:
    before = RunConfig().to_flower()
    changed = changed_keys(before, read_run_config(FREE))
    assert list(changed) == list(FREE)


def test_where_a_run_is_and_that_it_goes_on_are_no_changes() -> None:
    assert changed_keys(RunConfig().to_flower(), read_run_config(SILENT)) == {}


@pytest.mark.parametrize("key", BOUND)
def test_any_other_key_is_refused_with_both_values(key: str) -> None:
    needed = NEEDED.get(key, {})
    before = read_run_config(needed).to_flower()
    with pytest.raises(ConfigError) as caught:
        changed_keys(before, read_run_config(needed | {key: BOUND[key]}))
    assert caught.value.where == f"run config, {key}"
    assert (caught.value.got, caught.value.expected) == (BOUND[key], repr(before[key]))
    for free in FREE:
        assert free in caught.value.hint


def test_a_key_that_this_version_does_not_know_is_refused() -> None:
    before = {**RunConfig().to_flower(), "warp-factor": 9}
    with pytest.raises(ConfigError) as caught:
        changed_keys(before, RunConfig())
    assert caught.value.where == "run config, warp-factor"


def test_a_key_that_an_earlier_version_did_not_know_counts_as_its_default() -> None:
    before: dict[str, Any] = dict(RunConfig().to_flower())
    del before["weighting"]
    assert changed_keys(before, RunConfig()) == {}
    with pytest.raises(ConfigError) as caught:
        changed_keys(before, RunConfig(weighting="uniform"))
    assert caught.value.where == "run config, weighting"


def started_with(partition: str | None) -> dict[str, Any]:
    return {"config": RunConfig().to_flower(), "version": "0.1", "partition": partition}


@pytest.mark.parametrize("partition", ["a", None])
def test_the_same_partition_or_none_at_real_sites_goes_on_with_what_changes(
    partition: str | None,
) -> None:
    now = read_run_config({"num-rounds": 3})
    assert check_resumable(started_with(partition), now, partition) == {"num-rounds": [0, 3]}


def test_a_run_that_would_be_another_is_refused_though_its_partition_is_the_same() -> None:
    with pytest.raises(ConfigError, match="a resumed run cannot change this key"):
        check_resumable(started_with("a"), read_run_config({"seed": 8}), "a")


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("a", None), (None, "b")])
def test_another_partition_is_refused_with_both_hashes(old: str | None, new: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        check_resumable(started_with(old), RunConfig(), new)
    assert (caught.value.where, caught.value.exit_code) == ("partition", 2)
    assert (caught.value.got, caught.value.expected) == (new, str(old))


# The config of a run that goes on


def test_a_run_goes_on_with_its_own_config_where_it_is_now(tmp_path: Path) -> None:
    # It died before its first checkpoint, and was moved.
    own = RunConfig().to_flower() | {"output-dir": "/where/it/was", "num-rounds": 4, "seed": 9}
    (tmp_path / CONFIG).write_text(tomli_w.dumps(own))
    config = resumed_config(tmp_path, None, ["num-rounds=6", "keep-updates=true"], NO_OPTIONS)
    changes = {"num-rounds": 6, "keep-updates": True, "output-dir": str(tmp_path), "resume": True}
    assert config.to_flower() == own | changes


def test_options_that_say_what_the_run_says_already_are_taken(tmp_path: Path) -> None:
    own = RunConfig().to_flower() | {"num-sites": 3, "seed": 9}
    (tmp_path / CONFIG).write_text(tomli_w.dumps(own))
    options = NO_OPTIONS | {"num-sites": 3, "seed": 9}
    assert resumed_config(tmp_path, None, ["model=small-cnn"], options).seed == 9


# `mdc run --resume`


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of one round; a test goes on with a copy."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDC_CACHE_DIR", str(folder / "cache"))
        result = run_small("--set", "num-rounds=1", "--output", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


def facts(run_dir: Path) -> list[dict[str, Any]]:
    """Return a run's history without what depends on the machine's speed, or on the run's end."""
    lines = read_history(run_dir)
    for line in lines:
        line |= {"seconds": None, "deadline_s": None}
        line["plan"] |= {"run_start": None, "run_end": None, "plan_id": None}
        for metrics in line["participants"].values():
            metrics["train-seconds"] = None
    return lines


@pytest.mark.usefixtures("process_state")
def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(
    tmp_path: Path, stopped_run: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_small("--set", "num-rounds=3", "--output", whole).exit_code == 0
    shutil.copytree(stopped_run, cut)
    result = mdc("run", "--resume", "cut", "--set", "num-rounds=3", "--engine", "in-process")
    assert result.exit_code == 0, result.output
    assert model_sha256(cut) == model_sha256(whole) != model_sha256(stopped_run)
    assert facts(cut) == facts(whole)
    starts = [line for line in result.stdout.splitlines() if not line.startswith("round")]
    assert starts[1:-1] == [
        "2 sites: site-0, site-1",
        "resuming after round 1 with num-rounds 1 -> 3",
    ]

    config = tomllib.loads((cut / CONFIG).read_text())
    # Started again from this file, a run is a new one.
    changes = {"num-rounds": 3, "output-dir": str(cut), "resume": False}
    assert config == tomllib.loads((stopped_run / CONFIG).read_text()) | changes
    summary = json.loads((cut / SUMMARY).read_text())
    assert (summary["status"], summary["exit-status"], summary["rounds"]) == ("finished", 0, 3)
    assert summary["started"] == json.loads((stopped_run / SUMMARY).read_text())["started"]
    (resumed,) = summary["resumes"]
    assert resumed.pop("time") == read_events(cut, "run-resumed")[0]["time"]
    assert resumed == {
        "rounds_done": 1,
        "changed": {"num-rounds": [1, 3]},
        "version": [__version__, __version__],
    }
    assert summary["partition"] == json.loads((whole / SUMMARY).read_text())["partition"]


@pytest.mark.usefixtures("process_state")
def test_a_finished_run_that_goes_on_unchanged_trains_nothing(
    tmp_path: Path, stopped_run: Path
) -> None:
    shutil.copytree(stopped_run, tmp_path / "cut")
    result = mdc("run", "--resume", "cut", "--engine", "in-process")
    assert result.exit_code == 0, result.output
    assert "resuming after round 1\n" in result.stdout
    assert model_sha256(tmp_path / "cut") == model_sha256(stopped_run)
    assert read_history(tmp_path / "cut") == read_history(stopped_run)
    assert len(read_events(tmp_path / "cut", "round-started")) == 1
    assert json.loads((tmp_path / "cut" / SUMMARY).read_text())["resumes"][0]["changed"] == {}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--resume", "nowhere"], "--resume: there is no run to resume (got '"),
        (["--resume", "."], "--resume: there is no run to resume (got '"),
        (["arm.toml", "--resume", "cut"], "ARM: does not go with --resume (got 'arm.toml')"),
        (
            ["--resume", "cut", "--output", "other"],
            "output-dir: does not go with --resume (got '",
        ),
        (
            ["--resume", "cut", "--set", "output-dir=/other"],
            "output-dir: does not go with --resume (got '/other')",
        ),
        (
            ["--resume", "cut", "--set", "resume=false"],
            "resume: does not go with --resume (got 'False')",
        ),
        (
            ["--resume", "cut", "--set", "model=small-cnn"],
            "run config, model: a resumed run cannot change this key "
            "(got 'small-cnn', expected 'mlp')",
        ),
        (["--resume", "cut", "--seed", "4"], "run config, seed: a resumed run"),
        (["--resume", "cut", "--sites", "3"], "run config, num-sites: a resumed run"),
        (["--resume", "cut", "--set", "dataset=cli_lab:x"], "run config, dataset: a resumed run"),
        (["--resume", "cut", "--set", "num-ronds=3"], "no such key. Did you mean 'num-rounds'?"),
        (["--resume", "cut", "--set", "num-rounds=0"], "num-rounds or epoch-budget must be set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("process_state")
def test_what_would_be_another_run_is_refused_with_status_2_before_anything_runs(
    tmp_path: Path, stopped_run: Path, arguments: list[str], named: str
) -> None:
    (tmp_path / "arm.toml").write_text("num-rounds = 3\n")
    shutil.copytree(stopped_run, tmp_path / "cut")
    before = files_below(tmp_path)
    result = mdc("run", "--engine", "in-process", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "to resume:" not in result.stderr
    assert files_below(tmp_path) == before


@pytest.mark.usefixtures("process_state")
def test_a_data_set_that_has_changed_behind_its_name_is_refused_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resume_lab.py").write_text(LAB)
    (tmp_path / "count.txt").write_text("60")
    options = ["--set", "dataset=resume_lab:letters", "--set", "num-rounds=1", "--output", "out"]
    assert run_small(*options).exit_code == 0
    before = files_below(tmp_path / "out")

    (tmp_path / "count.txt").write_text("80")
    load_dataset.cache_clear()
    load_task.cache_clear()
    load_site_task.cache_clear()
    again = ["--resume", "out", "--set", "num-rounds=2"]
    started: list[object] = []
    engine = "mdc_flower.engines.ray_superlink.run_on_ray"
    monkeypatch.setattr(engine, lambda *args: started.append(args))
    result = mdc("run", *again)
    assert (result.exit_code, started) == (2, [])
    assert "dataset: the data, or their partition into sites, differ" in result.stderr
    assert "to resume" not in result.stderr  # it cannot
    assert files_below(tmp_path / "out") == before

    (tmp_path / "count.txt").write_text("60")
    load_dataset.cache_clear()
    load_task.cache_clear()
    load_site_task.cache_clear()
    assert mdc("run", *again, "--engine", "in-process").exit_code == 0
    assert len(read_history(tmp_path / "out")) == 2


def test_sites_whose_hardware_or_processes_changed_are_named() -> None:
    told: list[dict[str, Any]] = [
        {"machines": {"north": "EPYC", "south": "H100", "west": "H100"}},
        {"round": 1},
        {"machines": {"south": "2 ranks x H100"}},
    ]
    now = {"north": "EPYC", "south": "4 ranks x H100", "east": "H100"}
    assert changed_machines(told, now) == {"south": ["2 ranks x H100", "4 ranks x H100"]}
    assert changed_machines([], now) == {}
