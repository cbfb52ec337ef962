"""A round of training on any device. As a program, it prints the digest of the trained model.

Usage: ``python -m tests.mdc_flower.training.device_rounds DEVICE``.
"""

import hashlib
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from mdc_flower.data import Examples, Part
from mdc_flower.jobs.classification import ClassificationJob
from mdc_flower.models import build_model
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import EvalResult, TrainResult, TrainSettings, evaluate, train
from mdc_flower.training.numerics import repeatable
from tests.mdc_flower.examples import plan

SETTINGS = TrainSettings(batch_size=16, clip_norm=5.0)
PLAN = plan(local_epochs=2, lr_max=0.05, lr_min=0.01)
PIPELINE = InputPipeline((0.5,), (0.25,), "crop-flip")
NEW_MODEL = partial(build_model, "resnet8", (3, 8, 8), 3, 1)
NOT_TIMES = ("num_examples", "num_steps", "loss", "metrics", "sums")


def images(count: int) -> Examples:
    """Return images of three classes that can be learned."""
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, count)
    inputs = random.integers(0, 156, (count, 3, 8, 8), np.uint8)
    inputs[np.arange(count), labels] += 99
    return Examples(inputs, labels.astype(np.int64))


def job(count: int = 70, **changes: Any) -> ClassificationJob:
    """Return a job with this many training examples, and 20 others to evaluate."""
    whole = images(count + 20)
    train_rows, others = np.split(np.random.default_rng(2).permutation(count + 20), [count])
    splits = {
        "train": Tensors.of(Part(whole, train_rows)),
        "validation": Tensors.of(Part(whole, others)),
        "test": Tensors.of(whole),
    }
    return ClassificationJob(NEW_MODEL, splits, replace(SETTINGS, **changes), PIPELINE)


def trained(
    own: ClassificationJob, device: torch.device, **more: Any
) -> tuple[nn.Module, TrainResult]:
    """Train a new model for a round."""
    model = own.model()
    with repeatable(1, device):
        result = train(model, own, PLAN, own.settings, device, "north", **more)
    return model, result


def evaluated(own: ClassificationJob, split: str, device: torch.device) -> EvalResult:
    """Evaluate a new model."""
    with repeatable(1, device):
        return evaluate(own.model(), own, split, device)


def digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's arrays."""
    arrays = model_arrays(model, list(model_arrays(NEW_MODEL())))
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()


def numbers(result: TrainResult) -> list[Any]:
    """Return a result without its times."""
    return [getattr(result, name) for name in NOT_TIMES]


if __name__ == "__main__":
    print(digest(trained(job(), torch.device(sys.argv[1]))[0]))
