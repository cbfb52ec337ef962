"""The lock: one coordinator per run directory; a dead process does not keep the lock."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import strategies
from strategies.storage.lock import OWNER, LockedError, coordinator_lock, read_owner

REPOSITORY = Path(strategies.__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from strategies.storage.lock import coordinator_lock
with coordinator_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield another process that holds the lock of ``tmp_path`` until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_coordinator_is_refused_and_told_of_the_first(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    before = read_owner(tmp_path)
    with (
        pytest.raises(LockedError, match="another coordinator uses") as caught,
        coordinator_lock(tmp_path),
    ):
        pass
    assert caught.value.where == str(tmp_path)
    assert f"process {holder.pid} on " in str(caught.value.got)
    assert read_owner(tmp_path) == before  # and the first one is left alone
    assert holder.poll() is None


def test_when_the_first_has_ended_the_second_may(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.communicate(timeout=60)
    with coordinator_lock(tmp_path) as before:
        assert read_owner(tmp_path)["pid"] == os.getpid()
    assert before == {}


def test_the_lock_of_a_process_that_was_killed_is_taken_over_and_that_process_is_named(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait(timeout=60)
    assert read_owner(tmp_path)["pid"] == holder.pid
    with coordinator_lock(tmp_path) as before:
        assert before["pid"] == holder.pid
        assert read_owner(tmp_path)["pid"] == os.getpid()


def test_a_lock_is_let_go_however_its_block_ends(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), coordinator_lock(tmp_path):
        raise ZeroDivisionError
    assert read_owner(tmp_path) == {}
    with coordinator_lock(tmp_path):
        assert set(read_owner(tmp_path)) == {"pid", "host", "since"}
    assert not (tmp_path / OWNER).exists()


@pytest.mark.parametrize("content", ["", "{cut", "null", "[1]"])
def test_an_owner_that_cannot_be_read_is_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / OWNER).write_text(content)
    assert read_owner(tmp_path) == {}
    with coordinator_lock(tmp_path):
        assert read_owner(tmp_path)["pid"] == os.getpid()
