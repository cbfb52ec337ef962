"""The run directory: every file whole, every line true, equal models equal files."""

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import strategies
from strategies.colearning import RoundRecord
from strategies.errors import RunError
from strategies.journal import (
    BEST_MODEL,
    EVENTS,
    GLOBAL_MODEL,
    HISTORY,
    RunDirectory,
    pack_model,
    read_history,
    read_model,
    write_atomically,
)
from strategies.recipes import fedavg

METADATA = {"model": "mlp", "classes": ["a", "b"], "nested": {"width": 3}}
REPOSITORY = Path(strategies.__file__).parents[1]
DTYPES = ["float16", "float32", "float64", "int64", "int32", "uint8", "bool"]


@pytest.fixture
def journal(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "one", METADATA)


def model(value: float) -> dict[str, Any]:
    return {"w": np.full((2, 3), value, np.float32), "n": np.array(3)}


def record(number: int, **fields: Any) -> RoundRecord:
    return RoundRecord(number, plan={"round": number, "local_epochs": 2}, **fields)


def events(journal: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (journal.path / EVENTS).read_text().splitlines()]


def test_a_round_leaves_its_line_and_its_model(journal: RunDirectory) -> None:
    first = record(
        1,
        participants={"site-a": {"num-examples": 4, "train-loss": 0.5}},
        dropped={"site-b": "array 'w': 1 of 6 values are not finite"},
        relative_change=0.25,
        evaluation={"validation-accuracy": 0.75},
        sent_bytes=100,
        received_bytes=200,
        seconds=1.5,
    )
    journal.round_finished(first, model(1.0), is_best=False)
    assert read_history(journal.path) == [first.to_dict()]
    arrays, metadata = read_model(journal.path / GLOBAL_MODEL)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "w": [[1.0] * 3] * 2,
        "n": 3,
    }
    assert metadata == METADATA


def test_history_has_one_line_a_round_and_the_model_is_the_last_ones(
    journal: RunDirectory,
) -> None:
    for number in (1, 2, 3):
        journal.round_finished(record(number), model(number), is_best=False)
        assert [line["round"] for line in read_history(journal.path)] == list(range(1, number + 1))
        assert read_model(journal.path / GLOBAL_MODEL)[0]["w"][0, 0] == number


def test_a_run_that_has_not_finished_a_round_has_an_empty_history(journal: RunDirectory) -> None:
    assert read_history(journal.path) == []
    assert not (journal.path / GLOBAL_MODEL).exists()


def test_the_best_model_is_the_last_one_called_best(journal: RunDirectory) -> None:
    for number, is_best in [(1, True), (2, True), (3, False)]:
        journal.round_finished(record(number), model(number), is_best)
    assert read_model(journal.path / BEST_MODEL)[0]["w"][0, 0] == 2.0
    assert read_model(journal.path / GLOBAL_MODEL)[0]["w"][0, 0] == 3.0


def test_without_a_best_round_there_is_no_best_model(journal: RunDirectory) -> None:
    journal.round_finished(record(1), model(1.0), is_best=False)
    assert not (journal.path / BEST_MODEL).exists()


def test_the_event_log_tells_a_round_in_the_order_in_which_it_happened(
    journal: RunDirectory,
) -> None:
    method = fedavg(1, 2, 0.1)
    plan = method.plan(method.controller.start(), seed=7)
    journal.round_started(plan, {"site-a": 1, "site-b": 2})
    journal.site_answered(1, "site-b", None)
    journal.site_answered(1, "site-a", "metrics: 'train-loss' is nan")
    journal.round_finished(record(1), model(1.0), is_best=True)
    journal.event("run-finished", status="finished")
    started, first, second, finished, ended = events(journal)
    assert started["event"] == "round-started"
    assert started["sites"] == ["site-a", "site-b"]
    assert started["plan"] == plan.model_dump()
    assert (first["site"], first["dropped"]) == ("site-b", None)
    assert (second["site"], second["dropped"]) == ("site-a", "metrics: 'train-loss' is nan")
    assert (finished["event"], finished["round"]) == ("round-finished", 1)
    assert (ended["event"], ended["status"]) == ("run-finished", "finished")


def test_what_json_cannot_hold_is_written_as_null_however_deep(journal: RunDirectory) -> None:
    journal.round_finished(
        record(
            1,
            relative_change=math.inf,
            evaluation={"validation-loss": math.nan, "per-class": [0.5, -math.inf]},
        ),
        model(1.0),
        is_best=False,
    )
    journal.event("probe", values=(math.nan, 1.0))
    (line,) = read_history(journal.path)
    assert line["relative_change"] is None
    assert line["evaluation"] == {"validation-loss": None, "per-class": [0.5, None]}
    assert events(journal)[-1]["values"] == [None, 1.0]
    for name in (HISTORY, EVENTS):
        text = (journal.path / name).read_text()
        assert "NaN" not in text
        assert "Infinity" not in text


def test_a_directory_that_holds_a_run_is_refused_and_left_as_it_is(journal: RunDirectory) -> None:
    journal.round_finished(record(1), model(1.0), is_best=False)
    before = {path.name: path.read_bytes() for path in journal.path.iterdir()}
    with pytest.raises(RunError, match="holds a run already") as caught:
        RunDirectory(journal.path, METADATA)
    assert caught.value.got == str(journal.path)
    assert {path.name: path.read_bytes() for path in journal.path.iterdir()} == before


def test_a_directory_is_taken_as_soon_as_it_is_opened(journal: RunDirectory) -> None:
    with pytest.raises(RunError, match="holds a run already"):
        RunDirectory(journal.path, METADATA)


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path, METADATA).path == tmp_path


def test_a_relative_path_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="not absolute") as caught:
        RunDirectory(Path("runs/one"), METADATA)
    assert (caught.value.where, caught.value.got) == ("output-dir", "runs/one")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_a_directory_is_refused_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        RunDirectory(tmp_path / "file" / "one", METADATA)


def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    write_atomically(path, b"old and whole")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old and whole"


def test_a_file_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    synced: list[bool] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(path.exists())

    monkeypatch.setattr(os, "fsync", watch)
    write_atomically(path, b"content")
    assert synced[0] is False
    assert path.read_bytes() == b"content"


def test_a_file_has_all_its_content_when_it_is_forced_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.fstat(descriptor).st_size))
    write_atomically(tmp_path / "model", b"content")
    assert forced[0] == len(b"content")


def test_each_line_of_a_log_is_forced_to_disk_whole(
    journal: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.fstat(descriptor).st_size))
    sizes = []
    for number in (1, 2):
        journal.event("probe", number=number)
        sizes.append((journal.path / EVENTS).stat().st_size)
    assert forced == sizes


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(
    journal: RunDirectory,
) -> None:
    journal.write_text("config.toml", "seed = 1\n")
    journal.write_text("config.toml", "seed = 2 # é\n")
    assert (journal.path / "config.toml").read_text(encoding="utf-8") == "seed = 2 # é\n"
    assert sorted(path.name for path in journal.path.iterdir()) == ["config.toml", HISTORY]


def test_a_line_of_history_is_written_after_its_model(
    journal: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.round_finished(record(1), model(1.0), is_best=False)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("strategies.journal.write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        journal.round_finished(record(2), model(2.0), is_best=False)
    assert [line["round"] for line in read_history(journal.path)] == [1]


def test_no_history_is_an_error_that_names_the_directory_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run here") as caught:
        read_history(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert HISTORY in caught.value.expected


def test_a_line_of_history_that_was_cut_is_an_error_that_names_it(journal: RunDirectory) -> None:
    for number in (1, 2):
        journal.round_finished(record(number), model(number), is_best=False)
    path = journal.path / HISTORY
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunError, match="not JSON") as caught:
        read_history(journal.path)
    assert caught.value.where == f"{path}, line 2"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_file_keeps_every_bit_shape_and_dtype(tmp_path: Path, dtype: str) -> None:
    values = np.arange(6).reshape(2, 3)
    arrays = {
        "matrix": values.astype(dtype),
        "transposed": values.astype(dtype).T,
        "every other": values.astype(dtype)[:, ::2],
        "scalar": np.array(1, dtype),
        "one element": np.array([1], dtype),
        "empty": np.zeros((0, 3), dtype),
    }
    (tmp_path / "model").write_bytes(pack_model(arrays, METADATA))
    read, metadata = read_model(tmp_path / "model")
    assert metadata == METADATA
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape), name
        assert read[name].tobytes() == array.tobytes(), name


def test_a_model_file_differs_when_one_bit_of_the_model_or_its_metadata_does() -> None:
    nudged = model(1.0)
    nudged["w"][0, 0] = np.nextafter(np.float32(1), np.float32(2))
    packed = pack_model(model(1.0), METADATA)
    assert pack_model(nudged, METADATA) != packed
    assert pack_model(model(1.0), {**METADATA, "model": "cnn"}) != packed


PACK = """
import hashlib, numpy as np
from strategies.journal import pack_model
# Sets of strings are in an order that hangs on the process's hash seed, and so are dicts of them.
names = {f"layer{index}.weight" for index in range(20)}
metadata = {f"key-{index}" for index in range(20)}
content = pack_model(
    {name: np.full(3, len(name), np.float32) for name in names},
    {key: {inner: 1 for inner in metadata} for key in metadata},
)
print(list(names)[0], hashlib.sha256(content).hexdigest())
"""


def test_equal_models_are_equal_files_in_every_process() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PACK],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    (first_name, first_digest), (second_name, second_digest) = outputs
    assert first_name != second_name  # the processes do differ in what must not matter
    assert first_digest == second_digest
    assert len(first_digest) == hashlib.sha256().digest_size * 2


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_model_file_that_was_cut_is_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model"
    path.write_bytes(pack_model(model(1.0), METADATA)[:keep])
    with pytest.raises(RunError, match="model file is damaged") as caught:
        read_model(path)
    assert caught.value.where == str(path)


def test_a_file_that_is_no_model_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"\xff" * 200)
    with pytest.raises(RunError, match="model file is damaged"):
        read_model(tmp_path / "model")


def test_no_model_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no model here") as caught:
        read_model(tmp_path / "absent")
    assert caught.value.where == str(tmp_path / "absent")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_model_of_another_project_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    content = safetensors.numpy.save({"w": np.ones(3)}, metadata=metadata)
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(RunError, match="does not say how to rebuild the model"):
        read_model(tmp_path / "model")


def test_metadata_that_cannot_be_read_is_damage_too(tmp_path: Path) -> None:
    content = safetensors.numpy.save({"w": np.ones(3)}, metadata={"mdc-flower": "{cut"})
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        read_model(tmp_path / "model")
