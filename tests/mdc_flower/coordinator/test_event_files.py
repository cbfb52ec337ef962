"""Event files for TensorBoard, read back by TensorBoard itself."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import read_run_config
from mdc_flower.coordinator.event_files import (
    EPOCHS,
    FOLDER,
    ROUNDS,
    EventFiles,
    event_files,
    learning_rates,
    round_scalars,
)
from mdc_flower.engines import run_in_process
from strategies.method.local_epochs import EpochState
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord
from strategies.storage.run_directory import read_history
from tests.mdc_flower.examples import plan

NOWHERE = Position({}, EpochState(1))

Points = dict[str, list[tuple[int, float]]]
Read = Callable[[Path], Points]


def record(number: int, **fields: Any) -> RoundRecord:
    """Return a record of a round of two epochs, from 0.1 down to 0.05."""
    orders = {"lr_max": 0.1, "lr_min": 0.05, "shape": "linear"}
    one = plan(round=number, local_epochs=2, **orders)
    return RoundRecord(number, one.model_dump() | {"plan_id": one.plan_id}, **fields)


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
    ],
    ids=["epochs", "steps"],
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
    first = EventFiles(tmp_path, rounds_done=0, work_done=0)
    for number in (1, 2):
        first.round_finished(record(number, evaluation={"test-accuracy": 0.25}), NOWHERE)
    first.round_failed(record(3, failed=True, sent_bytes=7))
    first.close()
    # Round 1 is over, round 2 was lost with its checkpoint.
    again = EventFiles(tmp_path, rounds_done=1, work_done=2)
    for number in (2, 3):
        again.round_finished(record(number, evaluation={"test-accuracy": 0.5}), NOWHERE)
    again.close()
    rounds, epochs = read(tmp_path / ROUNDS), read(tmp_path / EPOCHS)
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
    epochs = read(tmp_path / FOLDER / EPOCHS)
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
    with event_files(tmp_path, []) as (observer,):
        observer.round_finished(record(1), NOWHERE)
    (message,) = flowers_log.messages
    assert message.startswith("writing event files for TensorBoard stopped: ")


def test_a_writer_that_fails_is_not_asked_again(
    tmp_path: Path, flowers_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    asked: list[str] = []

    def full(self: SummaryWriter, tag: str, *arguments: Any) -> None:
        asked.append(tag)
        raise OSError("no space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with event_files(tmp_path, []) as (observer,):
        for number in (1, 2):
            observer.round_finished(record(number), NOWHERE)
    assert len(asked) == 1
    (message,) = flowers_log.messages
    assert message.endswith("TensorBoard stopped: no space left on device")


def test_without_tensorboard_there_is_no_observer_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with event_files(tmp_path, []) as observers:
        assert observers == []
    assert not (tmp_path / FOLDER).exists()
