"""Trackers, each read back by its own library."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.coordinator.trackers import check_trackers, trackers
from mdc_flower.coordinator.trackers.scalars import learning_rates, round_scalars
from mdc_flower.coordinator.trackers.tensorboard_sink import FOLDER, TensorBoardSink
from mdc_flower.coordinator.trackers.tracker import ROUNDS, Start, Tracker, shown
from mdc_flower.engines.in_process import run_in_process
from strategies.common.errors import ConfigError
from strategies.method.local_work import WorkState
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord
from strategies.storage.run_directory import read_history
from tests.mdc_flower.examples import plan
from tests.tiny import KEYS

NOWHERE = Position({}, WorkState(1))

Points = dict[str, list[tuple[int, float]]]
Read = Callable[[Path], Points]


def record(number: int, **fields: Any) -> RoundRecord:
    """Return a record of a round of two epochs, from 0.1 down to 0.05."""
    orders = {"lr_max": 0.1, "lr_min": 0.05, "shape": "linear"}
    one = plan(round=number, local_epochs=2, **orders)
    return RoundRecord(number, one.model_dump() | {"plan_id": one.plan_id}, **fields)


def config_of(track: str, **keys: Any) -> RunConfig:
    """Return a config of two rounds that uses these trackers."""
    return read_run_config({**KEYS, "track": track, **keys})


def event_files(run_dir: Path, rounds_done: int, work_done: int) -> Tracker:
    start = Start(run_dir, config_of("tensorboard"), rounds_done, work_done)
    return Tracker("tensorboard", TensorBoardSink, start)


# What is written


def test_a_round_is_written_with_all_that_is_known_of_it() -> None:
    one = record(
        1,
        participants={"a": {"train-loss": 0.5, "num-examples": 10}},
        dropped={"b": "odd"},
        missing=["c", "d"],
        relative_change=0.25,
        evaluation={"test-accuracy": 0.75, "test-loss": 1.5},
        start_evaluation={"validation-accuracy": 0.5},
        sent_bytes=100,
        received_bytes=50,
        seconds=2.5,
    )
    assert round_scalars(one) == {
        "relative-change": 0.25,
        "bytes/sent": 100,
        "bytes/received": 50,
        "sites/took-part": 1,
        "sites/dropped": 1,
        "sites/missing": 2,
        "work/local-epochs": 2,
        "seconds": 2.5,
        "accuracy/test": 0.75,
        "loss/test": 1.5,
        "accuracy/sites-before": 0.5,
        "site/a/train-loss": 0.5,
        "site/a/num-examples": 10,
    }


def test_a_failed_round_and_what_is_no_number_are_left_out() -> None:
    scalars = round_scalars(record(1, failed=True, evaluation={"test-loss": float("nan")}))
    assert not set(scalars) & {"seconds", "relative-change", "loss/test"}
    assert scalars["sites/took-part"] == 0


@pytest.mark.parametrize(
    ("work", "done", "expected"),
    [
        # Two epochs, the run's sixth and seventh; steps have one point, at their end.
        ({"local_epochs": 2}, 5, [(6, 0.1, 0.075), (7, 0.075, 0.05)]),
        ({"local_steps": 30}, 10, [(40, 0.1, 0.05)]),
        ({"local_epochs": 0, "local_parts": 95}, 500, [(595, 0.1, 0.05)]),
    ],
    ids=["epochs", "steps", "parts"],
)
def test_the_learning_rate_is_that_of_the_plan_at_both_ends(
    work: dict[str, int], done: int, expected: list[tuple[int, float, float]]
) -> None:
    one = plan(lr_max=0.1, lr_min=0.05, shape="linear", **work)
    points = learning_rates(one.model_dump(), done)
    names = "learning-rate/start", "learning-rate/end"
    assert [step for step, _ in points] == [step for step, *_ in expected]
    for (_, scalars), (_, *rates) in zip(points, expected, strict=True):
        assert scalars == pytest.approx(dict(zip(names, rates, strict=True)))


def test_the_plan_of_a_round_that_an_earlier_version_began_has_learning_rates() -> None:
    fields = plan(local_steps=30).model_dump()
    del fields["steps_before"]
    assert learning_rates(fields | {"version": 1, "plan_id": "0"}, 0)[0][0] == 30


# How it is written


@pytest.fixture
def read() -> Read:
    """Return TensorBoard's own reader: the points of every tag of a folder."""
    pytest.importorskip(
        "tensorboard", reason="TensorBoard is not installed: pip install 'mdc-flower[tensorboard]'"
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def points(folder: Path) -> Points:
        events = EventAccumulator(str(folder))
        events.Reload()
        return {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }

    return points


def test_what_is_written_again_after_a_resume_takes_the_place_of_what_was_there(
    tmp_path: Path, read: Read
) -> None:
    first = event_files(tmp_path, 0, 0)
    for number in (1, 2):
        first.round_finished(record(number, evaluation={"test-accuracy": 0.25}), NOWHERE)
    first.round_failed(record(3, failed=True, sent_bytes=7))
    first.close(True)
    # Round 1 is over, round 2 was lost with its checkpoint.
    again = event_files(tmp_path, 1, 2)
    for number in (2, 3):
        again.round_finished(record(number, evaluation={"test-accuracy": 0.5}), NOWHERE)
    again.close(True)
    rounds, epochs = read(tmp_path / FOLDER / ROUNDS), read(tmp_path / FOLDER / "epochs")
    assert rounds["accuracy/test"] == [(1, 0.25), (2, 0.5), (3, 0.5)]
    assert rounds["bytes/sent"] == [(1, 0), (2, 0), (3, 0)]
    assert [step for step, _ in epochs["learning-rate/start"]] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_goes_on_has_every_step_once(tmp_path: Path, read: Read) -> None:
    values = {"model": "mlp", "max-train-examples": 100, "num-rounds": 2, "epochs": "fixed"}
    more = {"local-epochs": 2, "site-evaluation": True, "output-dir": str(tmp_path)}
    config = read_run_config({**values, **more})
    run_in_process(config, 2)
    run_in_process(config.model_copy(update={"num_rounds": 3, "resume": True}), 2)
    history = read_history(tmp_path)
    rounds = read(tmp_path / FOLDER / ROUNDS)
    accuracies = {line["round"]: line["evaluation"]["test-accuracy"] for line in history}
    assert dict(rounds["accuracy/test"]) == pytest.approx(accuracies)
    assert [step for step, _ in rounds["site/site-1/train-loss"]] == [1, 2, 3]
    # The model of round 2 was the last one, and then was not.
    assert [step for step, _ in rounds["accuracy/sites-before"]] == [1, 2, 3]
    assert [step for step, _ in rounds["accuracy/sites-after"]] == [2, 3]
    epochs = read(tmp_path / FOLDER / "epochs")
    assert [step for step, _ in epochs["learning-rate/end"]] == [1, 2, 3, 4, 5, 6]


# What goes wrong


@pytest.fixture
def flowers_log(
    read: Read, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Return what Flower logs where TensorBoard is installed."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    return caplog


def test_a_folder_that_cannot_be_made_is_said_once_and_costs_the_run_nothing(
    tmp_path: Path, flowers_log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with trackers(config_of("tensorboard"), tmp_path, []) as (observer,):
        observer.round_finished(record(1), NOWHERE)
    (message,) = flowers_log.messages
    assert message.startswith("tracking with tensorboard stopped: ")


def test_a_writer_that_fails_is_not_asked_again(
    tmp_path: Path, flowers_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    asked: list[str] = []

    def full(self: SummaryWriter, tag: str, *arguments: Any) -> None:
        asked.append(tag)
        raise OSError("no space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with trackers(config_of("tensorboard"), tmp_path, []) as (observer,):
        for number in (1, 2):
            observer.round_finished(record(number), NOWHERE)
    assert len(asked) == 1
    (message,) = flowers_log.messages
    assert message.endswith("tracking with tensorboard stopped: no space left on device")


def test_without_tensorboard_there_is_no_observer_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with trackers(config_of("auto"), tmp_path, []) as observers:
        assert observers == []
    assert not (tmp_path / FOLDER).exists()


def test_a_tracker_whose_library_is_missing_is_refused_with_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'mdc-flower\[mlflow\]'"):
        check_trackers(config_of("tensorboard, mlflow"))


def test_an_unknown_tracker_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="there is no tracker 'aim'"):
        config_of("mlflow,aim")
    assert config_of("").tracker_names == []


# Other trackers


def run_twice(run_dir: Path, track: str) -> list[dict[str, Any]]:
    """Run two rounds, then resume for a third; return the history."""
    config = config_of(track, **{"output-dir": str(run_dir)})
    run_in_process(config, 2)
    run_in_process(config.model_copy(update={"epoch_budget": 3, "resume": True}), 2)
    return read_history(run_dir)


@pytest.mark.integration
def test_mlflow_has_one_run_with_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'mdc-flower[mlflow]'")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    history = run_twice(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mdc-flower")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["epoch-budget"] == "2", "the keys with which the run began"
    points = client.get_metric_history(run.info.run_id, "accuracy/test")
    assert {point.step: point.value for point in points} == {
        line["round"]: line["evaluation"]["test-accuracy"] for line in history
    }
    rates = client.get_metric_history(run.info.run_id, "learning-rate/end")
    assert [point.step for point in rates] == [1, 2, 3]


@pytest.mark.integration
def test_wandb_writes_one_run_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install 'mdc-flower[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    history = run_twice(tmp_path, "wandb")
    run_id = (tmp_path / "wandb-run-id").read_text()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert files, "both processes wrote under the same id"
    written = [row for path in files for row in rows_of(path)]
    accuracies = {row["round"]: row["accuracy/test"] for row in written if "accuracy/test" in row}
    assert accuracies == {line["round"]: line["evaluation"]["test-accuracy"] for line in history}
    assert [row["local-work"] for row in written if "learning-rate/end" in row] == [1, 2, 3]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the logged rows in a file of Weights & Biases."""
    from wandb.proto import wandb_internal_pb2 as proto

    rows = []
    for data in records_of(path.read_bytes()):
        record = proto.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            rows.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
            )
    return rows


def records_of(log: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log: chunks of checksum, length and type in 32 KiB blocks."""
    at, record = 7, b""  # after the file's own header
    while at + 7 <= len(log):
        if 2**15 - at % 2**15 < 7:  # too little is left of the block for a chunk
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_a_tracker_that_hangs_costs_the_run_a_bounded_time(
    tmp_path: Path, flowers_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    class Hanging(TensorBoardSink):
        def flush(self) -> None:
            released.wait(60)

    monkeypatch.setattr("mdc_flower.coordinator.trackers.tracker.CLOSE_S", 0.1)
    start = Start(tmp_path, config_of("tensorboard"), 0, 0)
    tracker = Tracker("tensorboard", Hanging, start)
    tracker.round_finished(record(1), NOWHERE)
    tracker.close(True)
    assert flowers_log.messages == ["tracking with tensorboard has not ended within 0.1 s"]
    released.set()


def test_paths_of_the_machine_are_not_shown() -> None:
    keys = shown(config_of("mlflow", **{"data-root": "/srv/x", "output-dir": "/srv/y"}))
    assert not [value for value in keys.values() if "/srv" in str(value)]
