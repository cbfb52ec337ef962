"""A real SuperLink and two real SuperNodes, each with data of its own, without TLS."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from mdc_flower.engines.app_bundle import stage_app
from mdc_flower.engines.flower_processes import (
    COMPLETED,
    CONNECTION,
    environment,
    free_port,
    last_run_status,
    running,
    script,
    superlink,
)
from strategies.journal.run_directory import read_history
from tests.integration.conftest import summary_of


def node_config(site: str, partition: int) -> str:
    return f'site="{site}" partition-id={partition} num-partitions=2'


@pytest.mark.deployment
def test_two_real_sites_train_digits_together(tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "log.txt"
    home.mkdir()
    run_dir = tmp_path / "run"
    env = environment(home)
    with ExitStack() as stack:
        port = stack.enter_context(superlink(home, log)).port
        for index, site in enumerate(("berlin", "lisbon")):
            command = [script("flower-supernode"), "--insecure"]
            command += ["--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            command += ["--node-config", node_config(site, index)]
            stack.enter_context(running(command, env, home, log))
        keys = (
            f'output-dir="{run_dir}" num-sites=2 epoch-budget=2 local-epochs=1 '
            'model="mlp" site-evaluation=true wait-for-sites-s=60.0 round-deadline-s=120.0'
        )
        app = stage_app(home / "app" / "mdc-flower")
        command = [script("flwr"), "run", str(app), CONNECTION, "--stream", "--run-config", keys]
        done = subprocess.run(
            command, cwd=home, env=env, capture_output=True, text=True, check=False, timeout=240
        )
        assert last_run_status(home) == COMPLETED, done.stdout + log.read_text()

    history = read_history(run_dir)
    assert [sorted(line["participants"]) for line in history] == [["berlin", "lisbon"]] * 2
    assert all(not line["dropped"] for line in history)
    assert summary_of(run_dir)["sites"] == ["berlin", "lisbon"]
    # Two passes of an MLP over about 650 digits a site: far above the 10% of guessing.
    assert history[-1]["evaluation"]["test-accuracy"] > 0.7
    assert history[-1]["site_evaluation"]["validation-accuracy"] > 0.7
