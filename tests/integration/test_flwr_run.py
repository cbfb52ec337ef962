"""Plain `flwr run . --stream`, as in Flower's documentation, with its own local SuperLink."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdc_flower.engines.flower_processes import environment, free_port, script
from strategies.storage.run_directory import read_history
from tests.integration.conftest import stop_local_superlink, summary_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture
def flower_env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yield an environment in which `flwr run` starts its own SuperLink; stop that afterwards."""
    port = free_port()
    yield {
        **environment(tmp_path),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
    }
    stop_local_superlink(port)


def test_flwr_run_trains_and_leaves_a_run_directory(
    tmp_path: Path, flower_env: dict[str, str]
) -> None:
    keys = f'output-dir="{tmp_path}/runs/{{run-id}}" model="mlp" epoch-budget=2 local-epochs=1'
    done = subprocess.run(
        [script("flwr"), "run", str(ROOT), "--stream", "--run-config", keys,
         "--federation-config", "num-supernodes=3 client-resources-num-cpus=1"],
        cwd=tmp_path, env=flower_env, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.isdigit(), "the directory's name is the run id"
    summary = summary_of(run_dir)
    assert summary["status"] == "finished", done.stdout
    assert summary["sites"] == ["site-0", "site-1", "site-2"], "num-sites = 0 takes all sites"
    assert len(read_history(run_dir)) == 2
