"""The example docs/examples/lora: only the adapters travel, and their mean has a gap."""

from pathlib import Path

import pytest

from mdc_flower.config import read_run_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.jobs.user_task import build_job
from mdc_flower.models.exchange import exchanged_names
from mdc_flower.reports.adapter_gaps import gap_pictures
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

    for line in (first, last):
        assert len(line["adapter_gaps"]) == 2
        assert all(0 < gap < 1 for gap in line["adapter_gaps"].values())
    (picture,) = gap_pictures([first, last])
    assert f"at most {max(last['adapter_gaps'].values()):.3g}, in " in picture.label
    build_job.cache_clear()
