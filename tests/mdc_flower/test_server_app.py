"""The ServerApp: whatever ends a run, its summary says how, and nothing hides the reason."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from flwr.app import Context, Message

from mdc_flower import __version__, client_app
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.model_files import evaluate_run
from mdc_flower.training.numerics import processor
from strategies.common.errors import ConfigError, EngineError, QuorumError, RunError
from strategies.common.files import StorageError
from strategies.round_loop import RoundLoop
from strategies.storage.lock import OWNER
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord
from strategies.storage.run_directory import (
    AVERAGED_MODEL,
    CONFIG,
    GLOBAL_MODEL,
    HISTORY,
    SUMMARY,
    RunDirectory,
    read_events,
    read_history,
)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return read_run_config(
        {
            "model": "mlp",
            "max-train-examples": 100,
            "num-sites": 2,
            "num-rounds": 1,
            "epochs": "fixed",
            "local-epochs": 1,
            "precision": "none",
            "output-dir": str(tmp_path / "run"),
        }
    )


def summary_of(config: RunConfig) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((Path(config.output_dir) / SUMMARY).read_text())
    return summary


def test_a_run_that_finished_says_so_and_what_it_took(config: RunConfig) -> None:
    run_in_process(config, 2)
    summary, run_dir = summary_of(config), Path(config.output_dir)
    assert (summary["status"], summary["exit-status"]) == ("finished", 0)
    assert "error" not in summary
    assert (summary["version"], summary["seed"], summary["resumes"]) == (__version__, 1, [])
    assert summary["sites"] == ["site-0", "site-1"]
    assert (summary["rounds"], summary["epochs"]) == (1, 1)
    assert (run_dir / "report.png").is_file()
    assert [event["status"] for event in read_events(run_dir, "run-ended")] == ["finished"]
    assert not (run_dir / OWNER).exists()


def test_a_run_says_what_its_sites_compute_with_and_how_well_each_class_is_known(
    config: RunConfig,
) -> None:
    run_in_process(config, 2)
    (evaluation,) = [line["evaluation"] for line in read_history(Path(config.output_dir))]
    for split in ("validation", "test"):
        recall = evaluation[f"{split}-recall"]
        assert len(recall) == 10
        known = [value for value in recall if value is not None]
        assert evaluation[f"{split}-balanced-accuracy"] == pytest.approx(sum(known) / len(known))
    assert summary_of(config)["final"] == evaluation
    assert summary_of(config)["class-names"] == [str(digit) for digit in range(10)]
    machine = f"{processor()}, float32, 1 thread"
    machines = {"site-0": machine, "site-1": machine}
    assert summary_of(config)["machines"] == machines
    (started,) = read_events(Path(config.output_dir), "run-started")
    assert started["machines"] == machines
    assert [line["machines"] for line in read_history(Path(config.output_dir))] == [machines]


def test_a_site_with_other_code_behind_the_runs_name_for_it_takes_no_part(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    lab = tmp_path / "server_lab.py"
    lab.write_text("from mdc_flower.models.small import mlp\n")

    def edited(message: Message, context: Context) -> Message:
        # The site's copy has one line more.
        lab.write_text("from mdc_flower.models.small import mlp\nx = 1\n")
        return client_app.app(message, context)

    own = config.model_copy(update={"model": "server_lab:mlp", "wait_for_sites_s": 0.05})
    with pytest.raises(QuorumError, match="only 0 of 2 sites came online") as caught:
        run_in_process(own, 2, client=edited)  # type: ignore[arg-type]
    assert "its code for the run's 'model' differs from the coordinator's" in str(caught.value.got)


@pytest.mark.parametrize(
    ("raised", "ending"),
    [
        (
            EngineError("a worker died"),
            {"status": "failed", "exit-status": 1, "restart": True, "error": "a worker died"},
        ),
        (
            ZeroDivisionError("odd"),
            {
                "status": "failed",
                "exit-status": 1,
                "restart": True,
                "error": "ZeroDivisionError: odd",
            },
        ),
        (
            RunError("no more", where="here"),
            {"status": "failed", "exit-status": 1, "restart": False, "error": "here: no more"},
        ),
        (
            ConfigError("odd key"),
            {"status": "failed", "exit-status": 2, "restart": False, "error": "odd key"},
        ),
        (
            QuorumError("too few"),
            {"status": "stopped", "exit-status": 3, "restart": False, "error": "too few"},
        ),
        (
            KeyboardInterrupt(),
            {"status": "interrupted", "exit-status": 130, "restart": False, "error": None},
        ),
        (
            SystemExit(1),
            {"status": "interrupted", "exit-status": 130, "restart": False, "error": None},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_run_that_did_not_finish_says_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
    config: RunConfig,
    raised: BaseException,
    ending: dict[str, Any],
) -> None:
    before: list[str] = []

    def start(*args: object, **kwargs: object) -> NoReturn:
        before.append(summary_of(config)["status"])
        raise raised

    monkeypatch.setattr(RoundLoop, "start", start)
    with pytest.raises(type(raised)) as caught:
        run_in_process(config, 2)
    assert caught.value is raised
    assert before == ["running"]
    summary, run_dir = summary_of(config), Path(config.output_dir)
    assert {key: summary.get(key) for key in ending} == ending
    assert summary["seconds"] >= 0
    (event,) = read_events(run_dir, "run-ended")
    assert (event["status"], event["error"]) == (ending["status"], ending["error"])
    assert not (run_dir / OWNER).exists()


def test_the_last_models_are_averaged_and_evaluated_and_the_run_does_not_notice(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_average(folder: Path, **keys: Any) -> RunConfig:
        three = {"num_rounds": 3, "average_last": 2, "output_dir": str(folder), **keys}
        return config.model_copy(update=three)

    plain, whole, cut = (with_average(tmp_path / name) for name in ("plain", "whole", "cut"))
    plain = plain.model_copy(update={"average_last": 0})
    run_in_process(plain, 2)
    assert "averaged" not in summary_of(plain)
    assert not (tmp_path / "plain" / AVERAGED_MODEL).exists()

    run_in_process(whole, 2)
    models = [tmp_path / name / GLOBAL_MODEL for name in ("plain", "whole")]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert summary_of(whole)["final"] == summary_of(plain)["final"]
    averaged = summary_of(whole)["averaged"]
    assert averaged.pop("rounds") == [2, 3]
    assert set(averaged) == set(summary_of(whole)["final"])
    # What the summary says of it is what the file gives.
    result = evaluate_run(tmp_path / "whole" / AVERAGED_MODEL, "", "", best=False)
    assert result["accuracy"] == averaged["test-accuracy"]
    assert result["loss"] == pytest.approx(averaged["test-loss"])
    assert averaged != summary_of(whole)["final"]

    # Interrupted after round 2, it is the same to the bit.
    record_round = RunDirectory.round_finished

    def interrupt(self: RunDirectory, record: RoundRecord, position: Position) -> None:
        record_round(self, record, position)
        if record.round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "round_finished", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(cut, 2)
    assert not (tmp_path / "cut" / AVERAGED_MODEL).exists()
    run_in_process(cut.model_copy(update={"resume": True}), 2)
    files = [tmp_path / name / AVERAGED_MODEL for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_too_few_sites_at_the_start_stop_the_run(config: RunConfig) -> None:
    waiting = config.model_copy(update={"num_sites": 3, "wait_for_sites_s": 0.05})
    with pytest.raises(QuorumError, match="only 1 of 3 sites"):
        run_in_process(waiting, 1)
    assert (summary_of(config)["status"], summary_of(config)["exit-status"]) == ("stopped", 3)
    assert not (Path(config.output_dir) / HISTORY).exists()


def test_a_quorum_that_the_simulated_sites_cannot_reach_is_refused(config: RunConfig) -> None:
    below = config.model_copy(
        update={"num_sites": 0, "min_sites": 3, "wait_for_sites_s": 1.0, "max_round_retries": 0}
    )
    with pytest.raises(ConfigError, match="fewer sites than the quorum") as caught:
        run_in_process(below, 2)
    assert (caught.value.where, caught.value.got) == ("min-sites", 3)
    assert caught.value.expected.startswith("2 or less")
    assert (summary_of(below)["status"], summary_of(below)["exit-status"]) == ("failed", 2)
    assert not (Path(below.output_dir) / HISTORY).exists()
    run_in_process(below.model_copy(update={"min_sites": 2}), 2)
    assert summary_of(below)["status"] == "finished"


@pytest.mark.parametrize(
    ("changes", "num_sites", "named", "waits"),
    [
        ({"lr_max": 0.5}, 2, "run config, lr-max: a resumed run cannot change this key", 0),
        ({"min_sites": 3}, 2, "min-sites: there are fewer sites than the quorum", 1),
        ({}, 3, "partition: the data, or their partition into sites, differ", 1),
    ],
)
def test_a_run_that_is_refused_to_go_on_is_left_as_it_ended(
    config: RunConfig, changes: dict[str, Any], num_sites: int, named: str, waits: int
) -> None:
    config = config.model_copy(update={"num_sites": 0, "wait_for_sites_s": 1.0})
    run_in_process(config, 2)
    run_dir = Path(config.output_dir)
    before = [(run_dir / name).read_text() for name in (SUMMARY, CONFIG)]
    waited = len(read_events(run_dir, "waiting-for-sites"))
    with pytest.raises(ConfigError) as caught:
        run_in_process(config.model_copy(update={**changes, "resume": True}), num_sites)
    assert str(caught.value).startswith(named)
    assert [(run_dir / name).read_text() for name in (SUMMARY, CONFIG)] == before
    assert len(read_events(run_dir, "run-ended")) == 1
    # What can be told without the sites is told before they are waited for.
    assert len(read_events(run_dir, "waiting-for-sites")) == waited + waits


def test_a_run_that_was_to_go_on_and_had_too_few_sites_says_so_and_keeps_its_config(
    config: RunConfig,
) -> None:
    run_in_process(config, 2)
    before = (Path(config.output_dir) / CONFIG).read_text()
    changes = {"resume": True, "num_rounds": 2, "wait_for_sites_s": 0.05}
    with pytest.raises(QuorumError):
        run_in_process(config.model_copy(update=changes), 1)
    assert (summary_of(config)["status"], summary_of(config)["exit-status"]) == ("stopped", 3)
    assert (Path(config.output_dir) / CONFIG).read_text() == before


def test_a_disk_that_takes_no_summary_does_not_hide_why_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig
) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise StorageError("the summary cannot be written")

    def start(*args: object, **kwargs: object) -> NoReturn:
        monkeypatch.setattr(RunDirectory, "write_text", refuse)
        raise StorageError("the update cannot be written")

    monkeypatch.setattr(RoundLoop, "start", start)
    with pytest.raises(StorageError, match="the update cannot"):
        run_in_process(config, 2)


def test_the_time_of_a_run_that_went_on_is_that_of_its_rounds_and_of_now(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig
) -> None:
    as_it_is = RoundRecord.to_dict
    with monkeypatch.context() as patch:
        # As if the first round had taken an hour.
        patch.setattr(RoundRecord, "to_dict", lambda record: as_it_is(record) | {"seconds": 3600.0})
        run_in_process(config, 2)
    run_in_process(config.model_copy(update={"resume": True, "num_rounds": 2}), 2)
    assert 3600 < summary_of(config)["seconds"] < 3660
    assert [entry["round"] for entry in read_history(Path(config.output_dir))] == [1, 2]
