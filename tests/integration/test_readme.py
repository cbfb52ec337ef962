"""Run every command of the README that CI does not run."""

import json
import os
import re
import subprocess
import sysconfig
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdc_flower.engines.flower_processes import environment, free_port
from simulations.pages.published import BLOCK
from strategies.storage.run_directory import read_history
from tests.documentation import code_blocks
from tests.integration.conftest import stop_local_superlink, summary_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
blocks = partial(code_blocks, README)
RUN_BY_CI = {"make run", "make test"}
REAL_SITES = ("mdc provision ", "mdc coordinator ", "mdc site ")


def commands() -> list[str]:
    """Return all shell commands of the README."""
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def shell(command: str, folder: Path, env: dict[str, str]) -> str:
    """Run a command, and return what it printed."""
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def user_env(home: Path) -> dict[str, str]:
    """Return the environment of a user who has activated .venv, with a separate Flower home."""
    env = {**environment(home), "PYTHONPATH": str(ROOT)}
    del env["PYTHONSAFEPATH"]  # users do not set it
    return {**env, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), env["PATH"]])}


def test_make_commands_are_run_by_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert set(commands()) >= RUN_BY_CI
    assert all(command in ci for command in RUN_BY_CI)


def test_no_command_is_left_out() -> None:
    known = ("mdc ", "flwr run ")
    left_out = [c for c in commands() if c not in RUN_BY_CI and not c.startswith(known)]
    assert not left_out


def test_it_shows_two_tables_and_an_existing_picture() -> None:
    """The tests of `simulations.pages.published` check the contents of the tables."""
    assert [block["kind"] for block in BLOCK.finditer(README)] == ["summary", "table"]
    pictures = re.findall(r"!\[[^]]*]\((\S+?)\)", README)
    assert pictures == ["docs/results/fashion-mnist-full/exchanges.png"]
    assert all((ROOT / picture).is_file() for picture in pictures)


@pytest.mark.integration
def test_mdc_commands(tmp_path: Path) -> None:
    """Run every `mdc` command, in order and in one folder, with the README's own modules."""
    env = user_env(tmp_path)
    (tmp_path / "simulations").symlink_to(ROOT / "simulations")
    images = tmp_path / "images"
    _make_images(images)
    env["IMAGES"] = str(images)
    own_module, use_model = blocks("python")
    (tmp_path / "my_lab.py").write_text(own_module)
    mdc = [c for c in commands() if c.startswith("mdc ") and not c.startswith(REAL_SITES)]
    assert len(mdc) == 13
    for command in mdc:
        shell(command, tmp_path, env)
    reached = summary_of(tmp_path / "runs" / "own")["final"]["test-accuracy"]
    assert reached > 0.9
    # The model is used from another folder, and gives the accuracy of the run.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "use_model.py").write_text(use_model.replace('"runs/own"', '"../runs/own"'))
    assert float(shell("python use_model.py", elsewhere, env).split()[-1]) == reached
    printed = json.loads(shell("mdc evaluate ../runs/own", elsewhere, env))
    assert printed["accuracy"] == reached
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert rows[0] == "input,label,p(bright),p(dark)"
    right = [row.partition("/")[0] == row.split(",")[1] for row in rows[1:]]
    of_images = summary_of(tmp_path / "runs" / "images")["final"]["test-accuracy"]
    assert np.mean(right) == of_images


def _make_images(folder: Path) -> None:
    """Write 8x8 images in two classes: dark and bright noise."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for name, base in (("dark", 0), ("bright", 128)):
            target = folder / split / name
            target.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(base, base + 127, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{index}.png")


@pytest.mark.integration
def test_flwr_run_command(tmp_path: Path) -> None:
    """Run Flower's own command, with a local SuperLink on free ports."""
    port = free_port()
    env = user_env(tmp_path) | {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
    }
    (command,) = [c for c in commands() if c.startswith("flwr run . --stream")]
    try:
        shell(command.replace("flwr run .", f"flwr run {ROOT}"), tmp_path, env)
    finally:
        stop_local_superlink(port)
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.isdigit(), "the directory's name is the run id"
    summary = summary_of(run_dir)
    assert summary["status"] == "finished"
    assert summary["sites"] == ["site-0", "site-1", "site-2"], "num-sites = 0 takes all sites"
    assert len(read_history(run_dir)) == 2


def test_commands_for_real_sites_are_on_the_deployment_page() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    real = [command for command in commands() if command.startswith(REAL_SITES)]
    assert len(real) == 6
    for command in real:
        assert f"\n{command}\n" in page, "test_deployment_doc.py runs the commands of that page"
