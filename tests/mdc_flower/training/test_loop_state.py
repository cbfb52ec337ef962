"""Training that is interrupted between two epochs and continued gives the same bits."""

import json
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import TrainResult, TrainSettings, train
from mdc_flower.training.runtime import Saved
from strategies.aggregation.averaging import Arrays
from strategies.method.round_plan import RoundPlan
from tests.mdc_flower.examples import CPU, job_of, plan, same_bits

PIPELINE = InputPipeline((0.5,), (0.25,), augment="crop-flip")
PLAN = plan(local_epochs=4, lr_max=0.02, lr_min=0.002, shape="cosine")
SGD = TrainSettings(batch_size=8, weight_decay=1e-3)
SETTINGS = {
    "sgd": SGD,
    "adamw": replace(SGD, optimizer="adamw"),
    "plain": replace(SGD, momentum=0.0, clip_norm=0.1, label_smoothing=0.1),
    "float16": replace(SGD, autocast_dtype=torch.float16),
    "bfloat16": replace(SGD, autocast_dtype=torch.bfloat16),
}


class Noisy(nn.Module):
    """Draws from the generators of torch, numpy and Python in training, and has BatchNorm."""

    def __init__(self, convolution: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            first = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)] if convolution else [nn.Identity()]
            self.layers = nn.Sequential(
                *first, nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.LazyLinear(3)
            )
            self.layers(torch.zeros(2, 1, 8, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        noise = random.random() + float(np.random.random())
        outputs: Tensor = self.layers(inputs + 0.1 * noise * self.training)
        return outputs


def images() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (41, 1, 8, 8), generator=generator).to(torch.uint8)
    return Tensors(inputs, torch.randint(0, 3, (41,), generator=generator))


class Epochs:
    """Keeps the state after each epoch, as JSON and copies; training begins with one if given."""

    def __init__(self, first: tuple[Arrays, str] | None = None) -> None:
        self.states: list[tuple[Arrays, str]] = []
        self._first = first

    def read(self) -> Saved | None:
        return None if self._first is None else (self._first[0], json.loads(self._first[1]))

    def is_due(self) -> bool:
        return True

    def write(self, saved: Saved) -> None:
        arrays, about = saved
        self.states.append((arrays, json.dumps(about)))

    def unusable(self, error: Exception) -> Exception:
        return error


def fit(settings: TrainSettings, plan: RoundPlan, epochs: Epochs) -> tuple[nn.Module, TrainResult]:
    # Convolutions in float16 give NaN on some CPUs.
    model = Noisy(convolution=settings.autocast_dtype != torch.float16)
    result = train(
        model, job_of(images(), settings, PIPELINE), plan, settings, CPU, "north", epochs=epochs
    )
    return model, replace(result, seconds=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local_steps": 17, "local_epochs": 0},
        # An epoch has five steps: from the fourth of one to the third of the fourth one.
        {"local_parts": 3000, "parts_before": 600, "round": 2, "local_epochs": 0},
        {"proximal_mu": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SETTINGS)
def test_training_continues_after_any_epoch_with_the_same_bits(
    name: str, changes: dict[str, Any]
) -> None:
    settings = SETTINGS[name]
    fields = PLAN.model_dump() | changes
    planned = RoundPlan(**fields)
    saved = Epochs()
    whole, expected = fit(settings, planned, saved)
    assert math.isfinite(expected.loss)
    assert len(saved.states) == 3, "after each epoch but the last"
    for number, state in enumerate(saved.states, 1):
        rest = Epochs(state)
        continued, result = fit(settings, planned, rest)
        assert same_bits(continued, whole), f"after epoch {number}"
        assert result == expected
        assert len(rest.states) == 3 - number, "no epoch is trained twice"


def test_saving_changes_no_bit() -> None:
    whole, expected = fit(SGD, PLAN, Epochs())
    model = Noisy()
    result = train(model, job_of(images(), SGD, PIPELINE), PLAN, SGD, CPU, "north")
    assert same_bits(model, whole)
    assert replace(result, seconds=0.0) == expected
