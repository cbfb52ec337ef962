"""Damaged files, and a disk that is full or read-only: detected, reported, repaired if possible."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mdc_flower.config import RunConfig
from mdc_flower.engines.in_process import run_in_process
from strategies.common.errors import RunError
from strategies.common.files import StorageError
from strategies.storage.run_directory import (
    CHECKPOINTS,
    HISTORY,
    OPEN_ROUND,
    read_events,
    read_history,
)
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.runs import NUM_ROUNDS, NUM_SITES, config_in, resumed, run_child, sha256

BEFORE = "detected by its checksum and set aside, with a warning; the previous checkpoint is used"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def half_done(run_dir: Path) -> RunConfig:
    """Run two of four rounds; return the config for all four."""
    run_in_process(config_in(run_dir, num_rounds=2), NUM_SITES)
    return config_in(run_dir)


def newest(run_dir: Path, suffix: str) -> Path:
    return sorted((run_dir / CHECKPOINTS).glob(f"*{suffix}"))[-1]


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(truncate, marks=fault("checkpoint truncated", BEFORE)),
        pytest.param(flip_a_bit, marks=fault("checkpoint with a flipped bit", BEFORE)),
        pytest.param(
            remove,
            marks=fault(
                "a checkpoint or one of its files missing", "the previous checkpoint is used"
            ),
        ),
    ],
)
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(
    tmp_path: Path, undisturbed: str, damage: Callable[[Path], None], suffix: str
) -> None:
    config = half_done(tmp_path / "run")
    damage(newest(tmp_path / "run", suffix))
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == undisturbed
    (event,) = read_events(tmp_path / "run", "run-resumed")
    assert event["rounds_done"] == 1
    assert len(read_history(tmp_path / "run")) == NUM_ROUNDS


@fault(
    "all checkpoints damaged",
    "the run is refused with exit status 1; nothing is overwritten",
    "the run: it must be started again from the beginning",
)
def test_without_an_intact_checkpoint_a_run_is_not_resumed(tmp_path: Path) -> None:
    config = half_done(tmp_path / "run")
    for path in (tmp_path / "run" / CHECKPOINTS).iterdir():
        truncate(path)
    history = (tmp_path / "run" / HISTORY).read_bytes()
    for _ in range(2):
        with pytest.raises(RunError, match="no checkpoint is intact"):
            run_in_process(resumed(config), NUM_SITES)
    assert (tmp_path / "run" / HISTORY).read_bytes() == history


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            truncate,
            marks=fault("stored update truncated", "set aside; that site is asked again"),
        ),
        pytest.param(
            flip_a_bit,
            marks=fault("stored update with a flipped bit", "set aside; that site is asked again"),
        ),
    ],
)
def test_a_damaged_update_is_asked_for_again(
    tmp_path: Path, undisturbed: str, damage: Callable[[Path], None]
) -> None:
    config = config_in(tmp_path / "run")
    assert run_child(config, [Fault("folding", "kill", {"round": 2})]) == -9
    damage(next((tmp_path / "run" / OPEN_ROUND).glob("*.safetensors")))
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == undisturbed
    again = read_events(tmp_path / "run", "round-started")[2]
    assert (len(again["sites"]), len(again["kept"])) == (1, 2)


@fault("history line cut short by a crash", "written again from the checkpoint")
def test_an_incomplete_history_line_is_written_again(tmp_path: Path, undisturbed: str) -> None:
    config = half_done(tmp_path / "run")
    before = read_history(tmp_path / "run")
    truncate(tmp_path / "run" / HISTORY)
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == undisturbed
    assert read_history(tmp_path / "run")[:2] == before


@fault(
    "lines removed from the history",
    "the run is refused; the error says how many bytes the file should have",
    "nothing, once the lines are restored",
)
def test_a_history_without_its_lines_is_refused(tmp_path: Path, undisturbed: str) -> None:
    config = half_done(tmp_path / "run")
    history = tmp_path / "run" / HISTORY
    content = history.read_bytes()
    history.write_bytes(b"")
    with pytest.raises(RunError, match="shorter than its checkpoint says"):
        run_in_process(resumed(config), NUM_SITES)
    history.write_bytes(content)
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == undisturbed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.strip()}")
    yield folder
    # Lazily, because a file may still be memory-mapped.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@fault("the disk is full", "the run stops with exit status 1; the last checkpoint is intact")
def test_a_full_disk_stops_the_run_and_loses_nothing(disk: Path, undisturbed: str) -> None:
    config = half_done(disk / "run")
    filler = disk / "filler"
    fill(filler)
    with pytest.raises(StorageError, match="No space left on device"):
        run_in_process(resumed(config), NUM_SITES)
    filler.unlink()
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(disk / "run") == undisturbed
    assert list(disk.rglob("*.tmp")) == []


def fill(filler: Path) -> None:
    """Fill the disk up to a few pages: enough for a line, too few for a model."""
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            file.truncate(max(0, file.tell() - 4 * 4096))


@fault("the disk is read-only", "the run is refused at once with exit status 1")
def test_a_read_only_disk_is_refused_and_loses_nothing(disk: Path, undisturbed: str) -> None:
    config = half_done(disk / "run")
    assert mount("-o", "remount,ro", str(disk)).returncode == 0
    with pytest.raises(RunError, match="Read-only file system"):
        run_in_process(resumed(config), NUM_SITES)
    assert mount("-o", "remount,rw", str(disk)).returncode == 0
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(disk / "run") == undisturbed
