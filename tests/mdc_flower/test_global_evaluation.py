"""What the coordinator says of a global model depends on that model alone."""

from pathlib import Path

import pytest

from mdc_flower.config import read_run_config
from mdc_flower.global_evaluation import evaluate_fn
from mdc_flower.site_client import model_arrays
from mdc_flower.task import load_task
from strategies.messages import arrays_to_record

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
    evaluate = evaluate_fn(task, task.coordinator_data(2), 2)
    arrays = arrays_to_record(model_arrays(task.new_model()))
    first = evaluate(1, arrays)
    assert first is not None
    assert dict(first) == dict(evaluate(2, arrays) or {})
