"""What the coordinator says of a global model depends on that model alone, in whatever thread."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mdc_flower import server_app
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.coordinator.global_evaluation import evaluate_fn
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.task import load_task
from mdc_flower.training.arrays import model_arrays
from strategies.exchange.messages import arrays_to_record
from strategies.pending_evaluation import one_thread
from strategies.storage.run_directory import BEST_MODEL, GLOBAL_MODEL, SUMMARY, read_history


def config_in(folder: Path, **keys: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": "small-cnn",
        "max-train-examples": 120,
        "max-test-examples": 100,
        "num-sites": 2,
        "num-rounds": 3,
        "epochs": "fixed",
        "local-epochs": 1,
        "output-dir": str(folder),
    }
    return read_run_config({**values, **keys})


@pytest.mark.parametrize("keys", [{}, {"batch-norm": "local"}, {"threads-per-site": 2}], ids=str)
def test_a_model_evaluated_in_another_thread_has_the_same_metrics(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    task = load_task(config_in(tmp_path, **keys))
    evaluate = evaluate_fn(task, 2)
    arrays = arrays_to_record(model_arrays(task.new_model()))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    here = evaluate(1, arrays)
    with one_thread() as executor:
        there = executor.submit(evaluate, 1, arrays).result()
    assert here is not None
    assert there is not None
    assert str(dict(here)) == str(dict(there)), "equal to the last digit, NaN included"
    assert set(here) >= {
        f"{split}-{metric}" for split in ("validation", "test") for metric in ("loss", "accuracy")
    }
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_has_the_same_records_wherever_its_models_are_evaluated(tmp_path: Path) -> None:
    def left(folder: Path) -> tuple[list[bytes], list[Any], Any]:
        models = [(folder / name).read_bytes() for name in (GLOBAL_MODEL, BEST_MODEL)]
        evaluations = [line["evaluation"] for line in read_history(folder)]
        return models, evaluations, json.loads((folder / SUMMARY).read_text())["final"]

    run_in_process(config_in(tmp_path / "inline"), 2)
    run_in_process(config_in(tmp_path / "threaded"), 2, server=server_app.app)
    assert left(tmp_path / "threaded") == left(tmp_path / "inline")
    assert len(read_history(tmp_path / "threaded")) == 3


LAB = """
from torch import nn

class Counting(nn.Linear):
    uses = 0

    def forward(self, inputs):
        self.uses += 1
        return super().forward(inputs) * self.uses

def counting(shape, classes):
    return nn.Sequential(nn.Flatten(), Counting(64, classes))
"""


def test_what_a_module_remembers_ends_with_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluated_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    keys = {"model": "evaluated_lab:counting", "max-train-examples": 100, "max-test-examples": 50}
    task = load_task(read_run_config({"dataset": "digits", "precision": "none", **keys}))
    evaluate = evaluate_fn(task, 2)
    arrays = arrays_to_record(model_arrays(task.new_model()))
    first = evaluate(1, arrays)
    assert first is not None
    assert dict(first) == dict(evaluate(2, arrays) or {})
