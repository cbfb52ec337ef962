"""What ends with the process that started it, however that one ends."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from mdc_flower.engines.guardian import (
    ALIVE,
    RAY_SOCKET,
    SOCKET_PATH,
    end_orphan,
    home_of,
    is_alive,
    stop_strays,
    temporary_home,
)


def test_strays_of_this_home_are_killed_and_nobody_else(tmp_path: Path) -> None:
    def sleeper(home: Path) -> "subprocess.Popen[bytes]":
        env = {**os.environ, "FLWR_HOME": str(home)}
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=env)

    stray, other = sleeper(tmp_path / "mine"), sleeper(tmp_path / "mine-too")
    try:
        stop_strays(tmp_path / "mine")
        stray.wait(5)  # its exit status went to whoever killed it
        assert other.poll() is None
    finally:
        for process in (stray, other):
            process.kill()
            process.wait()


def test_who_has_set_flwr_home_himself_does_not_kill_himself(tmp_path: Path) -> None:
    code = (
        "import pathlib, subprocess, sys\n"
        "from mdc_flower.engines.guardian import stop_strays\n"
        f"stop_strays(pathlib.Path({str(tmp_path)!r}))\n"
    )
    env = {**os.environ, "FLWR_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert done.returncode == 0


def test_the_home_of_a_process_that_is_gone_is_unknown() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    seen = psutil.Process(gone.pid)
    gone.wait()
    assert home_of(seen) is None


STARTER = """
import subprocess, sys, time
from mdc_flower.engines.guardian import temporary_home

# In a session of its own, and with a child that does not know the FLWR_HOME any more.
CODE = "import subprocess; subprocess.run(['sleep', '600'], env={'PATH': '/bin:/usr/bin'})"
with temporary_home() as home:
    command, env = [sys.executable, "-c", CODE], {"FLWR_HOME": str(home)}
    sleeper = subprocess.Popen(command, env=env, start_new_session=True)
    print(home, sleeper.pid, flush=True)
    time.sleep(600)
"""


class Started(NamedTuple):
    """Who has started something, the FLWR_HOME, the guardian, what was started, and its child."""

    starter: "subprocess.Popen[bytes]"
    home: Path
    guardian: psutil.Process
    sleeper: psutil.Process
    child: psutil.Process


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it has not come to that"
        time.sleep(0.05)


@pytest.fixture
def started() -> Iterator[Started]:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    home, pid = starter.stdout.readline().decode().split()
    sleeper = psutil.Process(int(pid))
    (guardian,) = (one for one in psutil.Process(starter.pid).children() if one != sleeper)
    wait_until(sleeper.children)
    (child,) = sleeper.children()
    family = (psutil.Process(starter.pid), guardian, sleeper, child)
    yield Started(starter, Path(home), guardian, sleeper, child)
    for process in family:
        if is_alive(process):
            process.kill()
    starter.communicate()
    shutil.rmtree(home, ignore_errors=True)


def test_what_was_started_ends_with_a_starter_that_is_killed(started: Started) -> None:
    started.starter.kill()
    for process in (started.sleeper, started.child, started.guardian):
        wait_until(lambda process=process: not is_alive(process))  # type: ignore[misc]
    assert not started.home.exists()


def test_an_orphan_is_ended_and_nobody_whose_starter_lives(started: Started) -> None:
    assert not end_orphan(started.sleeper.pid)
    assert not end_orphan(os.getpid())
    started.guardian.kill()  # so that nobody else ends the orphan
    started.starter.kill()
    started.starter.wait()
    assert is_alive(started.sleeper)
    assert end_orphan(started.sleeper.pid)
    assert not is_alive(started.sleeper)
    assert not is_alive(started.child)
    assert not end_orphan(started.sleeper.pid)


def test_nothing_is_left_after_the_block_however_it_ends() -> None:
    def interrupted() -> None:
        with temporary_home() as home:
            assert (home / ALIVE).is_file()
            family = psutil.Process().children()
            seen.append((home, next(one for one in family if str(home) in one.cmdline())))
            raise KeyboardInterrupt

    seen: list[tuple[Path, psutil.Process]] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    ((home, guardian),) = seen
    assert not home.exists()
    assert not is_alive(guardian)


def test_rays_sockets_fit_below_a_folder_for_temporary_files_with_a_long_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long-" * 20)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with temporary_home() as home:
        assert len(os.fsencode(home)) + len(RAY_SOCKET) <= SOCKET_PATH
