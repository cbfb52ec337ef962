"""The run directory: correct history and events, model files, and resuming."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from strategies.aggregation.averaging import Update
from strategies.common.errors import RunError
from strategies.common.files import DamagedError, StorageError, check_seal
from strategies.method.local_work import WorkState
from strategies.method.recipes import fedavg
from strategies.storage.lock import OWNER, LockedError, coordinator_lock, read_owner
from strategies.storage.model_files import SealedArrays, read_model
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord
from strategies.storage.run_directory import (
    AVERAGED_MODEL,
    BEST_MODEL,
    CHECKPOINTS,
    EVENTS,
    GLOBAL_MODEL,
    HISTORY,
    SUMMARY,
    UPDATES,
    RunDirectory,
    holds_run,
    mark_interrupted,
    read_events,
    read_history,
    run_directory,
)

METADATA = {"model": "mlp", "classes": ["a", "b"], "nested": {"width": 3}}
RUN = {"config": {"seed": 7}, "version": "test"}


def model(value: float) -> dict[str, Any]:
    """Return a model whose arrays are in a different order than in a file."""
    return {"z": np.full((2, 3), value, np.float32), "a": np.array(value), "n": np.array(3)}


def record(number: int, **fields: Any) -> RoundRecord:
    return RoundRecord(
        number, plan={"round": number, "local_epochs": 2}, **({"seconds": number / 4} | fields)
    )


def position(number: int, best: int = 0) -> Position:
    """Return the position after a round; the model's values are the round's number."""
    return Position(
        model(float(number)),
        WorkState(2, used=2 * number, rounds_done=number),
        best_round=best,
        best_score=best / 10 if best else float("-inf"),
        pace={"site-a": 1.5},
    )


def opened(path: Path, **options: Any) -> AbstractContextManager[RunDirectory]:
    return run_directory(path, METADATA, **options)


def begun(directory: RunDirectory) -> RunDirectory:
    """Return the directory after beginning its run."""
    directory.begin(model(0.0), position(0), RUN)
    return directory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


@pytest.fixture
def fresh(path: Path) -> Iterator[RunDirectory]:
    with opened(path) as directory:
        yield begun(directory)


def leave_run(path: Path, rounds: int, best: int = 0) -> None:
    """Create a run directory of a run that stopped after the given number of rounds."""
    with opened(path) as directory:
        begun(directory)
        for number in range(1, rounds + 1):
            is_best = 0 < best <= number
            directory.round_finished(record(number), position(number, best if is_best else 0))


def value_of(path: Path, name: str) -> float:
    return float(read_model(path / name)[0]["a"])


def rounds_of(path: Path) -> list[int]:
    return [line["round"] for line in read_history(path)]


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_a_run_that_has_begun_has_an_empty_history_and_its_initial_model(
    fresh: RunDirectory,
) -> None:
    assert read_history(fresh.path) == []
    assert value_of(fresh.path, GLOBAL_MODEL) == 0.0
    assert not (fresh.path / BEST_MODEL).exists()
    assert read_model(fresh.path / GLOBAL_MODEL)[1] == METADATA


def test_the_last_models_are_averaged_by_hand_and_with_the_counters_of_the_newest(
    path: Path,
) -> None:
    with opened(path, average_last=2, keep_checkpoints=1) as directory:
        begun(directory)
        for number in range(1, 5):
            one = position(number)
            arrays = {**one.arrays, "n": np.array(number)}
            directory.round_finished(record(number), replace(one, arrays=arrays))
        before = (path / GLOBAL_MODEL).read_bytes()
        rounds, mean = directory.average_models(model(0.0))
    assert rounds == [3, 4]
    assert list(mean) == ["z", "a", "n"]
    assert (float(mean["a"]), int(mean["n"]), str(mean["z"].dtype)) == (3.5, 4, "float32")
    arrays, metadata = read_model(path / AVERAGED_MODEL)
    assert metadata == METADATA
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in mean.items()
    }
    assert (path / GLOBAL_MODEL).read_bytes() == before


@pytest.mark.parametrize(("average_last", "rounds"), [(0, 2), (3, 0)])
def test_where_there_is_nothing_to_average_there_is_no_file(
    path: Path, average_last: int, rounds: int
) -> None:
    with opened(path, average_last=average_last) as directory:
        begun(directory)
        for number in range(1, rounds + 1):
            directory.round_finished(record(number), position(number))
        assert directory.average_models(model(0.0)) == ([], {})
    assert not (path / AVERAGED_MODEL).exists()


def test_a_run_that_is_shorter_is_averaged_over_the_rounds_it_has(path: Path) -> None:
    with opened(path, average_last=9) as directory:
        begun(directory)
        for number in (1, 2):
            directory.round_finished(record(number), position(number))
        rounds, mean = directory.average_models(model(0.0))
    assert (rounds, float(mean["a"])) == ([1, 2], 1.5)


def test_a_fresh_run_begins_where_it_is_told_to(path: Path) -> None:
    start = position(0)
    with opened(path) as directory:
        assert directory.checkpoint is None
        begun = directory.begin(model(0.0), start, RUN)
        assert isinstance(begun.arrays, SealedArrays)
        assert list(begun.arrays) == list(start.arrays)
        assert all(np.array_equal(begun.arrays[name], start.arrays[name]) for name in start.arrays)
        assert replace(begun, arrays=start.arrays) == start
        assert directory.seconds_before == 0.0


def test_the_arrays_of_a_saved_position_are_read_from_its_checkpoint(fresh: RunDirectory) -> None:
    saved = replace(position(1), outer_state={"momentum/z": np.full((2, 3), 5.0)})
    fresh.round_finished(record(1), saved)
    stored = fresh.from_disk(saved)
    for on_disk, in_memory in (
        (stored.arrays, saved.arrays),
        (stored.outer_state, saved.outer_state),
    ):
        assert isinstance(on_disk, SealedArrays)
        assert list(on_disk) == list(in_memory)
        assert all(np.array_equal(on_disk[name], in_memory[name]) for name in in_memory)
    assert replace(stored, arrays=saved.arrays, outer_state=saved.outer_state) == saved


def test_a_round_leaves_its_line_and_its_model(fresh: RunDirectory) -> None:
    first = record(
        1,
        participants={"site-a": {"num-examples": 4, "train-loss": 0.5}},
        dropped={"site-b": "array 'w': 1 of 6 values are not finite"},
        errors={"site-b": "OSError: full"},
        missing=["site-c"],
        late={"site-c": 1},
        relative_change=0.25,
        evaluation={"validation-accuracy": 0.75},
        sent_bytes=100,
        received_bytes=200,
    )
    fresh.round_finished(first, position(1))
    assert read_history(fresh.path) == [first.to_dict()]
    arrays, metadata = read_model(fresh.path / GLOBAL_MODEL)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "z": [[1.0] * 3] * 2,
        "a": 1.0,
        "n": 3,
    }
    assert metadata == METADATA


def test_history_has_one_line_a_round_and_the_model_is_the_last_ones(fresh: RunDirectory) -> None:
    for number in (1, 2, 3):
        fresh.round_finished(record(number), position(number))
        assert rounds_of(fresh.path) == list(range(1, number + 1))
        assert value_of(fresh.path, GLOBAL_MODEL) == number


def test_the_best_model_is_that_of_the_best_round(fresh: RunDirectory) -> None:
    for number, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]:
        fresh.round_finished(record(number), position(number, best))
        assert value_of(fresh.path, BEST_MODEL) == best
    assert value_of(fresh.path, GLOBAL_MODEL) == 5.0


def test_whoever_overwrites_a_model_damages_no_checkpoint(fresh: RunDirectory) -> None:
    fresh.round_finished(record(1), position(1, best=1))
    (kept,) = (fresh.path / CHECKPOINTS).glob("000001.*.safetensors")
    for name in (GLOBAL_MODEL, BEST_MODEL):
        assert (fresh.path / name).read_bytes() == kept.read_bytes()
        (fresh.path / name).write_bytes(b"other")  # as `cp other` does: in place
    check_seal(kept)


def test_a_model_that_has_not_changed_is_not_copied_again(fresh: RunDirectory) -> None:
    fresh.round_finished(record(1), position(1, best=1))
    before = (fresh.path / BEST_MODEL).stat().st_ino
    fresh.round_finished(record(2), position(2, best=1))
    assert (fresh.path / BEST_MODEL).stat().st_ino == before
    assert value_of(fresh.path, GLOBAL_MODEL) == 2


DEAD = '{"pid": 17, "host": "here"}'


@pytest.mark.parametrize(
    ("summary", "told"),
    [
        ('{"status": "running"}', True),
        ('{"status": "interrupted"}', False),
        ('{"status": "finished"}', False),
        ("", False),  # it died before it began
    ],
)
def test_that_an_earlier_process_died_is_said_only_where_its_run_did_not_end(
    path: Path, caplog: pytest.LogCaptureFixture, summary: str, told: bool
) -> None:
    with opened(path):
        pass
    (path / OWNER).write_text(DEAD)
    (path / SUMMARY).write_text(summary)
    with caplog.at_level(logging.WARNING, logger="flwr"), opened(path, resume=True):
        pass
    assert ("taking over from process 17" in caplog.text) is told


def test_to_mark_a_run_as_interrupted_takes_nothing_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / SUMMARY).write_text('{"status": "running"}')
    (tmp_path / OWNER).write_text(DEAD)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        mark_interrupted(tmp_path)
    assert json.loads((tmp_path / SUMMARY).read_text())["status"] == "interrupted"
    assert caplog.text == ""


def test_the_event_log_tells_a_run_in_the_order_in_which_it_happened(
    fresh: RunDirectory,
) -> None:
    method = fedavg(1, 2, 0.1)
    plan = method.plan(method.controller.start(), seed=7)
    fresh.round_started(plan, {"site-a": 1, "site-b": 2}, ["site-c"])
    fresh.site_answered(1, "site-b", None)
    fresh.site_answered(1, "site-a", "metrics: 'train-loss' is nan")
    fresh.round_retried(record(1, dropped={"site-a": "unfit"}, failed=True), quorum=2)
    fresh.round_finished(record(1), position(1))
    fresh.event("run-ended", status="finished")
    started, first, second, retried, finished, ended = (
        json.loads(line) for line in (fresh.path / EVENTS).read_text().splitlines()
    )
    assert started["event"] == "round-started"
    assert (started["sites"], started["kept"]) == (["site-a", "site-b"], ["site-c"])
    assert started["plan"] == plan.model_dump()
    assert (first["event"], first["site"], first["dropped"]) == ("site-answered", "site-b", None)
    assert (second["site"], second["dropped"]) == ("site-a", "metrics: 'train-loss' is nan")
    assert (retried["event"], retried["quorum"]) == ("round-retried", 2)
    assert (retried["round"], retried["dropped"]) == (1, {"site-a": "unfit"})
    assert (finished["event"], finished["round"]) == ("round-finished", 1)
    assert (ended["event"], ended["status"]) == ("run-ended", "finished")
    assert [event["site"] for event in read_events(fresh.path, "site-answered")] == [
        "site-b",
        "site-a",
    ]


def test_what_json_cannot_hold_is_null_in_history_and_events(fresh: RunDirectory) -> None:
    odd = record(1, relative_change=math.inf, evaluation={"validation-loss": math.nan})
    fresh.round_finished(odd, position(1))
    for (line,) in (read_history(fresh.path), read_events(fresh.path, "round-finished")):
        assert line["relative_change"] is None
        assert line["evaluation"] == {"validation-loss": None}


def test_a_round_that_ended_the_run_has_its_line_and_no_model(fresh: RunDirectory) -> None:
    fresh.round_finished(record(1), position(1))
    fresh.round_failed(record(2, failed=True))
    assert [line["failed"] for line in read_history(fresh.path)] == [False, True]
    assert value_of(fresh.path, GLOBAL_MODEL) == 1.0
    assert [event["failed"] for event in read_events(fresh.path, "round-finished")] == [
        False,
        True,
    ]


def test_a_line_of_history_is_written_after_its_checkpoint(
    fresh: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(point: str, **where: str) -> NoReturn:
        raise OSError(28, "No space left on device")

    fresh.round_finished(record(1), position(1))
    monkeypatch.setattr("strategies.common.files.reach", full)
    with pytest.raises(StorageError, match="No space left"):
        fresh.round_finished(record(2), position(2))
    assert rounds_of(fresh.path) == [1]
    assert value_of(fresh.path, GLOBAL_MODEL) == 1.0


def test_a_small_text_is_replaced_whole(fresh: RunDirectory) -> None:
    fresh.write_text("config.toml", "seed = 1\n")
    fresh.write_text("config.toml", "seed = 2 # é\n")
    assert (fresh.path / "config.toml").read_text(encoding="utf-8") == "seed = 2 # é\n"


def test_the_directory_is_locked_inside_the_block_and_not_after_it(path: Path) -> None:
    with opened(path) as directory:
        begun(directory)
        assert read_owner(path) != {}
        with pytest.raises(LockedError), opened(path, resume=True):
            pass
    assert not (path / OWNER).exists()
    with opened(path, resume=True):
        pass


def test_a_directory_that_holds_a_run_is_refused_and_left_as_it_is(path: Path) -> None:
    leave_run(path, rounds=1)
    before = contents(path)
    with pytest.raises(RunError, match="holds a run already") as caught, opened(path):
        pass
    assert caught.value.got == str(path)
    assert f"mdc run --resume {path}" in caught.value.hint
    assert contents(path) == before


def test_a_directory_holds_a_run_from_its_beginning_on(path: Path) -> None:
    assert not holds_run(path)
    with opened(path) as directory:
        assert not holds_run(path)
        begun(directory)
        assert holds_run(path)


def test_a_coordinator_that_ended_before_its_run_began_leaves_the_directory_free(
    path: Path,
) -> None:
    with opened(path) as directory:
        directory.event("waiting-for-sites")
    with opened(path) as directory:
        assert directory.checkpoint is None


def test_a_run_that_another_began_before_the_lock_was_free_is_not_begun_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(folder: Path) -> AbstractContextManager[dict[str, Any]]:
        monkeypatch.undo()
        leave_run(path, rounds=1)  # by the one who had the lock until now
        return coordinator_lock(folder)

    monkeypatch.setattr("strategies.storage.run_directory.coordinator_lock", late)
    with pytest.raises(RunError, match="holds a run already"), opened(path):
        pass
    assert rounds_of(path) == [1]
    assert not (path / OWNER).exists()


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        assert directory.path == tmp_path


def test_a_relative_path_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="not absolute") as caught, opened(Path("runs/one")):
        pass
    assert (caught.value.where, caught.value.got) == ("output-dir", "runs/one")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_a_directory_is_refused_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(StorageError, match="cannot be written: Not a directory"),
        opened(tmp_path / "file" / "one"),
    ):
        pass


def test_resuming_where_no_run_is_begins_one(path: Path) -> None:
    with opened(path, resume=True) as directory:
        assert directory.checkpoint is None
        assert begun(directory).path == path
    assert read_history(path) == []


def test_a_resumed_run_is_where_it_was_to_the_bit(path: Path) -> None:
    leave_run(path, rounds=3, best=2)
    with opened(path, resume=True) as directory:
        assert directory.checkpoint is not None
        assert directory.checkpoint.run == RUN
        back = directory.begin(model(9.0), position(0), RUN)
    assert replace(back, arrays={}) == replace(position(3, best=2), arrays={})
    assert list(back.arrays) == ["z", "a", "n"]  # the order of the initial model
    for name, array in model(3.0).items():
        assert (back.arrays[name].dtype, back.arrays[name].shape) == (array.dtype, array.shape)
        assert back.arrays[name].tobytes() == array.tobytes()
    assert rounds_of(path) == [1, 2, 3]


def test_a_resumed_run_goes_on_with_the_next_line_and_the_next_model(path: Path) -> None:
    leave_run(path, rounds=2)
    with opened(path, resume=True) as directory:
        begun(directory)
        directory.round_finished(record(3), position(3, best=3))
    assert rounds_of(path) == [1, 2, 3]
    assert value_of(path, GLOBAL_MODEL) == value_of(path, BEST_MODEL) == 3.0


def test_a_run_stopped_before_its_first_round_begins_with_it(path: Path) -> None:
    leave_run(path, rounds=0)
    (path / HISTORY).unlink()  # it died between its checkpoint and its history
    with opened(path, resume=True) as directory:
        back = directory.begin(model(9.0), position(0), RUN)
        assert back.work.rounds_done == 0
        assert back.arrays["a"] == 0.0
    assert read_history(path) == []


Damage = Callable[[Path], object]


def last_line_lost(history: Path) -> None:
    history.write_bytes(b"".join(history.read_bytes().splitlines(keepends=True)[:-1]))


def last_line_torn(history: Path) -> None:
    history.write_bytes(history.read_bytes()[:-10])


def later_line(history: Path) -> None:
    with history.open("a") as file:
        file.write(json.dumps(record(4, failed=True).to_dict()) + "\n")


def later_line_torn(history: Path) -> None:
    with history.open("a") as file:
        file.write('{"round": 4, "pl')


@pytest.mark.parametrize("damage", [last_line_lost, last_line_torn, later_line, later_line_torn])
def test_a_resumed_run_has_exactly_the_lines_of_the_rounds_behind_it(
    path: Path, damage: Damage
) -> None:
    leave_run(path, rounds=3)
    whole = (path / HISTORY).read_bytes()
    damage(path / HISTORY)
    with opened(path, resume=True) as directory:
        begun(directory)
        assert (path / HISTORY).read_bytes() == whole
        directory.round_finished(record(4), position(4))
    assert rounds_of(path) == [1, 2, 3, 4]


def test_a_run_that_failed_goes_on_without_the_line_of_its_failed_round(path: Path) -> None:
    with opened(path) as directory:
        begun(directory).round_failed(record(1, failed=True))
    with opened(path, resume=True) as directory:
        begun(directory)
        directory.round_finished(record(1), position(1))
    assert [(line["round"], line["failed"]) for line in read_history(path)] == [(1, False)]


def test_where_the_newest_checkpoint_is_damaged_history_goes_back_with_it(path: Path) -> None:
    leave_run(path, rounds=3)
    (newest,) = (path / CHECKPOINTS).glob("000003.*.json")
    newest.write_bytes(newest.read_bytes()[:-1])
    with opened(path, resume=True) as directory:
        back = directory.begin(model(9.0), position(0), RUN)
        assert back.work.rounds_done == 2
        assert rounds_of(path) == [1, 2]
        assert value_of(path, GLOBAL_MODEL) == 2.0
        directory.round_finished(record(3), position(3))
    assert rounds_of(path) == [1, 2, 3]
    assert value_of(path, GLOBAL_MODEL) == 3.0


def test_where_no_checkpoint_is_intact_the_run_is_refused_and_let_go(path: Path) -> None:
    leave_run(path, rounds=3)
    for description in (path / CHECKPOINTS).glob("*.json"):
        description.write_bytes(b"")
    with pytest.raises(DamagedError, match="no checkpoint is intact"), opened(path, resume=True):
        pass
    assert not (path / OWNER).exists()


def test_a_history_shorter_than_its_checkpoint_says_is_refused_and_left_as_it_is(
    path: Path,
) -> None:
    leave_run(path, rounds=3)
    first_line, *_ = (path / HISTORY).read_bytes().splitlines(keepends=True)
    (path / HISTORY).write_bytes(first_line)
    with (
        pytest.raises(RunError, match="history is shorter than its checkpoint") as caught,
        opened(path, resume=True) as directory,
    ):
        begun(directory)
    assert caught.value.where == str(path / HISTORY)
    assert caught.value.got == f"{len(first_line)} bytes"
    assert (path / HISTORY).read_bytes() == first_line


def test_models_that_were_lost_or_are_old_are_linked_anew(path: Path) -> None:
    leave_run(path, rounds=3, best=2)
    (path / BEST_MODEL).unlink()
    (path / GLOBAL_MODEL).unlink()
    (path / GLOBAL_MODEL).write_bytes(b"of a round that never was")
    with opened(path, resume=True) as directory:
        begun(directory)
    assert value_of(path, GLOBAL_MODEL) == 3.0
    assert value_of(path, BEST_MODEL) == 2.0


def test_a_torn_line_of_the_event_log_is_removed_when_the_run_goes_on(path: Path) -> None:
    leave_run(path, rounds=1)
    with (path / EVENTS).open("a") as file:
        file.write('{"event": "site-answ')
    with opened(path, resume=True) as directory:
        directory.event("waiting-for-sites")
        begun(directory)
        directory.event("run-resumed")
    assert len(read_events(path, "round-finished")) == 1
    assert len(read_events(path, "waiting-for-sites")) == 1
    assert len(read_events(path, "run-resumed")) == 1


def test_a_torn_line_of_the_event_log_of_a_run_that_never_began_is_removed_too(path: Path) -> None:
    with opened(path) as directory:
        directory.event("waiting-for-sites")
    with (path / EVENTS).open("a") as file:
        file.write('{"event": "wai')
    with opened(path) as directory:
        directory.event("waiting-for-sites")
    assert len(read_events(path, "waiting-for-sites")) == 2


def test_the_time_of_the_rounds_done_before_is_known(path: Path) -> None:
    leave_run(path, rounds=3)  # 1/4 + 2/4 + 3/4 seconds
    later_line(path / HISTORY)
    with opened(path, resume=True) as directory:
        assert begun(directory).seconds_before == 1.5


def test_as_many_checkpoints_are_kept_as_asked_for(path: Path) -> None:
    with opened(path, keep_checkpoints=3) as directory:
        begun(directory)
        for number in range(1, 6):
            directory.round_finished(record(number), position(number))
    assert len(list((path / CHECKPOINTS).glob("*.json"))) == 3


@pytest.mark.parametrize("keep", [True, False])
def test_the_updates_of_a_finished_round_are_kept_only_when_asked_for(
    path: Path, keep: bool
) -> None:
    with opened(path, keep_updates=keep) as directory:
        directory.updates.open("0123456789abcdef")
        directory.updates.add(Update("site-a", 1, model(1.0), {}))
        directory.updates.close(7)
    assert len(list(path.glob(f"{UPDATES}/round-00007/*.safetensors"))) == int(keep)
    assert list(path.glob("open-round/*")) == []


def test_a_checkpoint_that_is_not_used_is_named(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_run(path, rounds=2)
    (newest,) = (path / CHECKPOINTS).glob("000002.*.safetensors")
    newest.write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="flwr"), opened(path, resume=True):
        pass
    assert str(newest) in caplog.text


def test_no_history_is_an_error_that_names_the_directory_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run here") as caught:
        read_history(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert HISTORY in caught.value.expected


def test_a_line_of_history_that_was_cut_is_an_error_that_names_it(path: Path) -> None:
    leave_run(path, rounds=2)
    last_line_torn(path / HISTORY)
    with pytest.raises(RunError, match="not JSON") as caught:
        read_history(path)
    assert caught.value.where == f"{path / HISTORY}, line 2"


def test_a_running_run_whose_coordinator_is_gone_is_marked_as_interrupted(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps({"status": "running", "seed": 7}))
    mark_interrupted(tmp_path)
    assert json.loads((tmp_path / SUMMARY).read_text()) == {
        "status": "interrupted",
        "exit-status": 130,
        "restart": False,
        "seed": 7,
    }


def test_a_summary_that_says_how_the_run_ended_is_left_as_it_is(tmp_path: Path) -> None:
    mark_interrupted(tmp_path)
    assert contents(tmp_path) == {}  # nor is one made where there is none
    (tmp_path / SUMMARY).write_text('{"status": "finished"}')
    mark_interrupted(tmp_path)
    assert (tmp_path / SUMMARY).read_text() == '{"status": "finished"}'


def test_a_run_whose_coordinator_is_at_work_is_not_marked(path: Path) -> None:
    with opened(path) as directory:
        directory.write_text(SUMMARY, '{"status": "running"}')
        mark_interrupted(path)
        assert (path / SUMMARY).read_text() == '{"status": "running"}'
        assert read_owner(path) != {}
