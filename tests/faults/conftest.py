"""The fault-free run, whose model every run with a fault must reproduce."""

from pathlib import Path

import pytest

from mdc_flower.engines.in_process import run_in_process
from tests.faults.runs import NUM_SITES, config_in, sha256
from tests.isolation import one_thread
from tests.mdc_flower.conftest import identity

__all__ = ["identity", "one_thread"]


@pytest.fixture(scope="session")
def undisturbed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of the fault-free run."""
    run_dir: Path = tmp_path_factory.mktemp("undisturbed") / "run"
    run_in_process(config_in(run_dir), NUM_SITES)
    return run_dir


@pytest.fixture(scope="session")
def undisturbed(undisturbed_run: Path) -> str:
    """Return the SHA-256 of the fault-free run's model."""
    return sha256(undisturbed_run)
