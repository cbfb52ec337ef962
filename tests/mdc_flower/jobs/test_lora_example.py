"""The example docs/examples/lora: only the adapters travel, and their mean has a gap."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdc_flower.config import read_run_config
from mdc_flower.engines import run_in_process
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.jobs.user_task import build_job
from mdc_flower.models.exchange import exchanged_names
from mdc_flower.training.arrays import model_arrays
from strategies.exchange.messages import arrays_to_record
from strategies.storage.model_files import read_model
from strategies.storage.run_directory import GLOBAL_MODEL, read_history, read_summary

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "lora"

LARGEST_HEADER = 256
"""Bytes of an array's description on the wire, at most."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)


@pytest.mark.usefixtures("identity")
def test_exactly_the_adapters_travel_and_the_gap_of_their_mean_is_measured(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes((ROOT / "docs" / "method.md").read_bytes()[:2560])
    config = read_run_config(
        {
            "job": "adapters:job",
            "dataset": str(text),
            "exchange": "trainable",
            "keep-updates": True,
            "site-evaluation": True,
            "epochs": "fixed",
            "local-epochs": 1,
            "epoch-budget": 2,
            "batch-size": 8,
            "precision": "none",
            "lr-max": 0.01,
            "output-dir": str(tmp_path / "run"),
        }
    )
    run_in_process(config, 2)
    model = load_run_task(config).new_model()
    names = exchanged_names(model, "trainable")
    assert len(names) == 4
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    final, _ = read_model(tmp_path / "run" / GLOBAL_MODEL)
    assert sorted(final) == sorted(names)

    adapters, whole = model_arrays(model, names), model_arrays(model)
    size = sum(array.nbytes for array in adapters.values())
    assert read_summary(tmp_path / "run")["exchanged"]["bytes"] == size
    packed = arrays_to_record(adapters).count_bytes()
    assert size <= packed <= size + len(names) * LARGEST_HEADER
    assert packed < sum(array.nbytes for array in whole.values()) / 10
    first, last = read_history(tmp_path / "run")
    assert first["sent_bytes"] == first["received_bytes"] == 2 * packed
    assert last["received_bytes"] == 2 * packed
    losses = [line["start_evaluation"]["validation-loss"] for line in (first, last)]
    assert losses[1] < losses[0]

    gap = importlib.import_module("gap")
    for number in (1, 2):
        found = gap.gaps_of_round(tmp_path / "run" / "updates" / f"round-{number:05d}")
        assert len(found) == 2
        assert all(0 < value < 1 for value in found.values())
    build_job.cache_clear()


def test_the_gap_is_that_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps: Any = importlib.import_module("gap").gaps
    a, b = "q.lora_A.default.weight", "q.lora_B.default.weight"
    one = {a: np.array([[1.0, 0.0]], np.float32), b: np.array([[2.0], [0.0]], np.float32)}
    two = {a: np.array([[0.0, 1.0]], np.float32), b: np.array([[2.0], [0.0]], np.float32)}
    assert gaps([one, two], [1, 1]) == {"q": 0.0}, "B is the same, so the mean is exact"
    other = {**two, b: np.array([[0.0], [4.0]], np.float32)}
    # The mean of the products is [[1, 0], [0, 2]]; the means give [[.5, .5], [1, 1]].
    assert gaps([one, other], [1, 1]) == {"q": pytest.approx((2.5 / 5) ** 0.5)}
    assert gaps([one, other], [1, 0]) == {"q": 0.0}
