"""Why a simulation engine has failed: its own words, or a process of Ray's that is gone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mdc_flower.engines.ray_watch import RayWatch

WORDS = (
    "\x1b[93mWARNING \x1b[0m:   The ActorPool is empty.\n"
    "\x1b[91mERROR \x1b[0m:     An exception {verb} !! no room for Ray\n"
    "\x1b[91mERROR \x1b[0m:     Traceback (most recent call last):\n"
)


@pytest.mark.parametrize("verb", ["occured", "occurred"])
def test_the_engines_own_words_are_the_reason(tmp_path: Path, verb: str) -> None:
    log = tmp_path / "engine.log"
    log.write_text(WORDS.format(verb=verb).replace("room", "thing of an earlier run"))
    watch = RayWatch(log)
    assert watch.failure(None) == ""
    with log.open("a") as file:
        file.write(WORDS.format(verb=verb).replace(" !!", "!!"))
    assert watch.failure(None) == "no room for Ray"


def test_a_process_of_rays_that_is_gone_is_the_reason_if_the_engine_says_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raylet = shutil.copy(str(shutil.which("sleep")), tmp_path / "raylet")
    log = tmp_path / "engine.log"
    watch, other = RayWatch(log), RayWatch(log)
    monkeypatch.setattr("mdc_flower.engines.ray_watch.GRACE_S", 3600.0)
    with subprocess.Popen([raylet, "600"]) as process:
        assert watch.failure(None) == watch.failure(os.getpid()) == ""
        assert other.failure(os.getpid()) == ""
        process.kill()
    assert watch.failure(os.getpid()) == other.failure(os.getpid()) == ""
    monkeypatch.setattr("mdc_flower.engines.ray_watch.GRACE_S", 0.0)
    assert watch.failure(os.getpid()) == (
        "Ray's process raylet died; the machine may have run out of memory"
    )
    assert watch.failure(process.pid).startswith("Ray's process raylet died")
    log.write_text(WORDS.format(verb="occurred"))
    assert other.failure(os.getpid()) == "no room for Ray"
