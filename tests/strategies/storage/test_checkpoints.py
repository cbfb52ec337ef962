"""Checkpoints: a complete position, the newest intact one, and no loss through pruning."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strategies.common.files import DamagedError, StorageError, seal
from strategies.method.local_work import WorkState
from strategies.storage.checkpoints import Checkpoint, Checkpoints
from strategies.storage.model_files import read_model
from strategies.storage.position import Position

METADATA = {"model": "mlp"}
RUN = {"config": {"seed": 7, "lr-max": 0.1}, "version": "test", "partition": None}


def arrays(value: float) -> dict[str, Any]:
    return {"z": np.full((2, 3), value, np.float32), "a": np.array(value), "n": np.array(3)}


def checkpoint(number: int, best: int = 0, score: float = float("-inf")) -> Checkpoint:
    position = Position(
        arrays(number / 3),
        WorkState(length=4, used=2 * number, rounds_done=number),
        best_round=best,
        best_score=score,
        pace={"site-a": 0.1 + 0.2, "site-b": 7.0},
    )
    record = {"round": number, "relative_change": 0.1} if number else None
    return Checkpoint(position, RUN, history_bytes=100 * number, record=record)


def saved(folder: Path, *numbers: int, keep: int = 2, best: int = 0) -> Checkpoints:
    """Save checkpoints; the given round is the best once it is done."""
    checkpoints = Checkpoints(folder, keep)
    for number in numbers:
        is_best = 0 < best <= number
        one = checkpoint(number, best, 0.75) if is_best else checkpoint(number)
        checkpoints.save(one, METADATA)
    return checkpoints


def found(folder: Path) -> Checkpoint:
    newest = Checkpoints(folder).newest()
    assert newest is not None
    return newest


def rounds(folder: Path, suffix: str) -> list[int]:
    """Return the rounds that have a file, in order."""
    return sorted(int(path.name.split(".")[0]) for path in folder.glob(f"*{suffix}"))


def file_of(folder: Path, number: int, suffix: str) -> Path:
    (path,) = folder.glob(f"{number:06d}.*{suffix}")
    return path


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_checkpoint_comes_back_as_it_was_saved_to_the_bit(tmp_path: Path) -> None:
    one = checkpoint(3, best=3, score=0.1 + 0.2)
    Checkpoints(tmp_path).save(one, METADATA)
    back = found(tmp_path)
    assert (back.run, back.history_bytes, back.record) == (RUN, 300, one.record)
    assert replace(back.position, arrays={}) == replace(one.position, arrays={})
    assert set(back.position.arrays) == set(one.position.arrays)
    for name, array in one.position.arrays.items():
        kept = back.position.arrays[name]
        assert (kept.dtype, kept.shape) == (array.dtype, array.shape)
        assert kept.tobytes() == array.tobytes()


def with_outer_state(number: int) -> Checkpoint:
    one = checkpoint(number)
    state = {"steps": np.array(number), "momentum/z": np.full((2, 3), number / 7, np.float32)}
    return replace(one, position=replace(one.position, outer_state=state))


def test_the_outer_optimizers_state_has_a_file_of_its_own_and_leaves_the_models_as_it_is(
    tmp_path: Path,
) -> None:
    plain, outer = tmp_path / "plain", tmp_path / "outer"
    for number in (1, 2, 3):
        Checkpoints(plain).save(checkpoint(number), METADATA)
        Checkpoints(outer).save(with_outer_state(number), METADATA)
    model = file_of(outer, 3, ".safetensors")
    assert model.read_bytes() == (plain / model.name).read_bytes()
    back = found(outer).position.outer_state
    assert {name: array.tobytes() for name, array in back.items()} == {
        name: array.tobytes() for name, array in with_outer_state(3).position.outer_state.items()
    }
    assert back["steps"].shape == ()
    # Two checkpoints are kept, each of three files.
    assert sorted(path.name.split(".")[0] for path in outer.iterdir()) == sorted(
        ["000002", "000002", "000002-outer", "000003", "000003", "000003-outer"]
    )
    assert found(plain).position.outer_state == {}


@pytest.mark.parametrize("gone", [True, False])
def test_where_the_outer_optimizers_state_is_damaged_the_checkpoint_before_is_taken(
    tmp_path: Path, gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        Checkpoints(tmp_path).save(with_outer_state(number), METADATA)
    (path,) = tmp_path.glob("000002-outer.*")
    if gone:
        path.unlink()
    else:
        damage(path)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        back = found(tmp_path).position
    assert (back.work.rounds_done, int(back.outer_state["steps"])) == (1, 1)
    assert str(path) in caplog.text


def test_a_state_whose_writer_died_before_the_description_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(point: str, path: str) -> None:
        if "000002-outer" in path:
            raise KeyboardInterrupt

    Checkpoints(tmp_path).save(with_outer_state(1), METADATA)
    monkeypatch.setattr("strategies.common.files.reach", die)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path).save(with_outer_state(2), METADATA)
    assert found(tmp_path).position.outer_state["steps"] == 1


def test_a_checkpoint_of_a_version_that_knew_no_outer_optimizer_is_read(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = file_of(tmp_path, 1, ".json")
    told = json.loads(path.read_text())
    assert told.pop("outer-state") is None
    path.unlink()
    seal(tmp_path, "000001", ".json", json.dumps(told).encode())
    assert found(tmp_path).position.outer_state == {}
    saved(tmp_path, 2)
    assert rounds(tmp_path, ".safetensors") == [1, 2]


def test_before_round_1_there_is_no_record_and_no_best_round(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    back = found(tmp_path)
    assert back.record is None
    assert (back.position.best_round, back.position.best_score) == (0, float("-inf"))
    assert back.position.work.rounds_done == 0


def test_where_none_was_ever_written_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent").newest() is None
    assert Checkpoints(tmp_path).newest() is None
    assert Checkpoints(tmp_path).newest_model is None


def test_the_newest_is_the_one_of_the_latest_round(tmp_path: Path) -> None:
    saved(tmp_path, 8, 9, 10, 11, keep=9)
    assert found(tmp_path).position.work.rounds_done == 11


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 0, 1, 2, 3, 4)
    assert rounds(tmp_path, ".json") == rounds(tmp_path, ".safetensors") == [3, 4]
    saved(tmp_path, 5, keep=1)
    assert rounds(tmp_path, ".json") == rounds(tmp_path, ".safetensors") == [5]


def test_the_model_of_the_best_round_is_kept_for_as_long_as_it_is_the_best(
    tmp_path: Path,
) -> None:
    checkpoints = saved(tmp_path, 0, 1, 2, 3, 4, 5, best=2)
    assert rounds(tmp_path, ".json") == [4, 5]
    assert rounds(tmp_path, ".safetensors") == [2, 4, 5]
    assert checkpoints.best_model == file_of(tmp_path, 2, ".safetensors")
    checkpoints.save(checkpoint(6, best=6, score=0.9), METADATA)
    assert rounds(tmp_path, ".safetensors") == [2, 5, 6]  # 2 for the checkpoint of round 5
    checkpoints.save(checkpoint(7, best=6, score=0.9), METADATA)
    assert rounds(tmp_path, ".safetensors") == [6, 7]


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_model_may_turn_out_to_be_the_best_one_round_later(
    tmp_path: Path, restart: bool, keep: int
) -> None:
    checkpoints = saved(tmp_path, 1, 2, keep=keep)
    assert checkpoints.best_model is None
    if restart:
        checkpoints = Checkpoints(tmp_path, keep)
        checkpoints.newest()
    checkpoints.save(checkpoint(3, best=2, score=0.75), METADATA)
    assert checkpoints.best_model == file_of(tmp_path, 2, ".safetensors")
    checkpoints.save(checkpoint(4, best=2, score=0.75), METADATA)
    assert checkpoints.best_model == file_of(tmp_path, 2, ".safetensors")
    assert 2 in rounds(tmp_path, ".safetensors")


@pytest.mark.parametrize("restart", [True, False])
def test_the_models_of_the_newest_rounds_are_kept_for_as_long_as_they_are_asked_for(
    tmp_path: Path, restart: bool
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, recent=3)
    for number in range(6):
        if restart:
            checkpoints = Checkpoints(tmp_path, keep=1, recent=3)
            checkpoints.newest()
        checkpoints.save(checkpoint(number), METADATA)
        # The initial model is that of no round.
        expected = list(range(max(1, number - 2), number + 1))
        assert list(checkpoints.recent_models) == expected
        assert rounds(tmp_path, ".safetensors") == (expected or [0])
        assert rounds(tmp_path, ".json") == [number]
    models = checkpoints.recent_models
    assert [float(read_model(path)[0]["a"]) for path in models.values()] == [1.0, 4 / 3, 5 / 3]


def test_where_none_are_asked_for_no_more_models_are_kept_than_before(tmp_path: Path) -> None:
    assert saved(tmp_path, 0, 1, 2, 3).recent_models == {}


def test_after_a_fall_back_the_recent_models_are_those_of_that_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, recent=2)
    for number in range(5):
        checkpoints.save(checkpoint(number), METADATA)
    damage(file_of(tmp_path, 4, ".json"))
    again = Checkpoints(tmp_path, keep=2, recent=2)
    newest = again.newest()
    assert newest is not None
    assert newest.position.work.rounds_done == 3
    assert list(again.recent_models) == [2, 3]
    again.save(checkpoint(4), METADATA)
    assert list(again.recent_models) == [3, 4]


def test_a_recent_model_that_is_damaged_is_left_out_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, recent=3)
    for number in range(4):
        checkpoints.save(checkpoint(number), METADATA)
    damage(file_of(tmp_path, 2, ".safetensors"))
    again = Checkpoints(tmp_path, keep=1, recent=3)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        assert again.newest() is not None
    assert list(again.recent_models) == [1, 3]
    assert "The average of the last models will not include it" in caplog.text


def test_the_initial_model_is_never_the_best(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 0, 1)
    assert checkpoints.best_model is None


def test_the_best_model_is_known_again_after_a_restart(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, best=1)
    again = Checkpoints(tmp_path)
    newest = again.newest()
    assert newest is not None
    assert (newest.position.best_round, newest.position.best_score) == (1, 0.75)
    assert again.best_model == file_of(tmp_path, 1, ".safetensors")
    assert again.newest_model == file_of(tmp_path, 3, ".safetensors")
    again.save(checkpoint(4, best=1, score=0.75), METADATA)
    assert rounds(tmp_path, ".safetensors") == [1, 3, 4]


def test_a_best_model_that_is_damaged_is_forgotten_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2, 3, best=1)
    damage(file_of(tmp_path, 1, ".safetensors"))
    again = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        newest = again.newest()
    assert newest is not None
    assert newest.position.work.rounds_done == 3
    assert (newest.position.best_round, newest.position.best_score) == (0, float("-inf"))
    assert again.best_model is None
    assert "best model so far is lost" in caplog.text


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("gone", [True, False])
def test_where_the_newest_is_damaged_the_one_before_is_taken_and_that_is_said(
    tmp_path: Path, suffix: str, gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2, 3)
    newest = file_of(tmp_path, 3, suffix)
    if gone and suffix == ".safetensors":
        newest.unlink()
    else:
        damage(newest)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        back = found(tmp_path)
    assert back.position.work.rounds_done == 2
    assert back.position.arrays["a"] == 2 / 3
    assert str(newest) in caplog.text
    assert found(tmp_path).position.work.rounds_done == 2  # and again, should that be needed


def test_after_a_fall_back_the_round_is_saved_anew_and_is_the_newest(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    damage(file_of(tmp_path, 3, ".safetensors"))
    again = Checkpoints(tmp_path)
    assert again.newest() is not None
    again.save(checkpoint(3), METADATA)
    assert found(tmp_path).position.work.rounds_done == 3
    assert read_model(file_of(tmp_path, 3, ".safetensors"))[0]["a"] == 1.0


def test_where_all_are_damaged_the_run_is_not_begun_anew_in_silence(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    for number in (2, 3):
        damage(file_of(tmp_path, number, ".json"))
    for _ in range(2):  # also when it is tried once more
        with pytest.raises(DamagedError, match="no checkpoint is intact") as caught:
            Checkpoints(tmp_path).newest()
        assert caught.value.where == str(tmp_path)


def test_a_model_whose_writer_died_before_its_description_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(point: str, **where: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("strategies.storage.checkpoints.reach", die)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 0)
    assert rounds(tmp_path, ".safetensors") == [0]
    assert Checkpoints(tmp_path).newest() is None
    monkeypatch.undo()
    saved(tmp_path, 0, 1)
    monkeypatch.setattr("strategies.storage.checkpoints.reach", die)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2)
    assert found(tmp_path).position.work.rounds_done == 1
    monkeypatch.undo()
    saved(tmp_path, 2)
    assert rounds(tmp_path, ".json") == rounds(tmp_path, ".safetensors") == [1, 2]


def test_a_checkpoint_that_cannot_be_written_leaves_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(point: str, path: str) -> None:
        if path.endswith(".json"):
            raise OSError(28, "No space left on device")

    checkpoints = saved(tmp_path, 1, 2)
    monkeypatch.setattr("strategies.common.files.reach", full)
    with pytest.raises(StorageError, match="No space left"):
        checkpoints.save(checkpoint(3), METADATA)
    assert rounds(tmp_path, ".json") == [1, 2]
    assert found(tmp_path).position.work.rounds_done == 2


def test_what_writers_that_died_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".000001.json.17.tmp").write_bytes(b"half")
    saved(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"{cut", b"{}", b"\xff", None], ids=repr)
def test_while_a_kept_description_is_damaged_no_model_is_thrown_away_and_that_is_said(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    description = file_of(tmp_path, 2, ".json")
    if content is None:
        damage(description)
    else:
        description.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        checkpoints.save(checkpoint(3), METADATA)
    assert rounds(tmp_path, ".safetensors") == [1, 2, 3]
    assert found(tmp_path).position.work.rounds_done == 3
    assert str(description) in caplog.text
    assert "All models are kept" in caplog.text


def test_a_model_is_a_model_file_with_what_rebuilds_it(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    assert checkpoints.newest_model is not None
    model, metadata = read_model(checkpoints.newest_model)
    assert metadata == METADATA
    assert model["a"] == 1 / 3


def as_earlier(folder: Path, number: int, **changes: Any) -> None:
    """Write a description as earlier versions did, which counted epochs only."""
    path = file_of(folder, number, ".json")
    description = json.loads(path.read_text())
    del description["work"]
    path.unlink()
    seal(folder, f"{number:06d}", ".json", json.dumps(description | changes).encode())


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"local_epochs": 4, "local_steps": 0}, WorkState(8, used=12, rounds_done=3)),
        # All rounds of a run in steps had the same length, and were not counted.
        ({"local_epochs": 0, "local_steps": 50}, WorkState(50, used=150, rounds_done=3)),
    ],
)
def test_the_work_in_a_checkpoint_of_an_earlier_version_is_read(
    tmp_path: Path, plan: dict[str, int], expected: WorkState
) -> None:
    saved(tmp_path, 3)
    epochs = {"local_epochs": 8, "epochs_used": 12 if plan["local_epochs"] else 0, "rounds_done": 3}
    as_earlier(tmp_path, 3, epochs=epochs, record={"round": 3, "plan": plan})
    assert found(tmp_path).position.work == expected


def test_so_is_that_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    as_earlier(tmp_path, 0, epochs={"local_epochs": 5, "epochs_used": 0, "rounds_done": 0})
    assert found(tmp_path).position.work == WorkState(5)
