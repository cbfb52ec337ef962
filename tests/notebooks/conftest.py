"""Results of a small comparison of splits, for the notebook about uneven data."""

from pathlib import Path

import pytest

from simulations.cli import COMPARISONS_DIR
from simulations.compare.comparison_file import read_comparison
from simulations.compare.runner import results_of, run_comparison
from simulations.results.committed import SPLITS
from simulations.results.result_files import write_results

TINY = {
    "dataset": "digits",
    "max-train-examples": 200,
    "max-test-examples": 50,
    "model": "mlp",
    "batch-norm": "average",  # the model has no BatchNorm
    "epoch-budget": 2,
    "local-epochs": 1,
}


@pytest.fixture(scope="session")
def split_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with results for an even and a very uneven split, with two seeds each."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("sites-2", "dirichlet-0.1"):
        comparison, arms = read_comparison(COMPARISONS_DIR / f"{name}.toml")
        comparison = comparison.model_copy(
            update={"config": {**comparison.config, **TINY}, "num_seeds": 2}
        )
        compared = run_comparison(comparison, arms, folder / "runs" / name, workers=2)
        write_results(folder / SPLITS / name, results_of(comparison, arms, compared, "test"))
    return folder
