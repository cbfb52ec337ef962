"""Small data, plans and models whose every number is known."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mdc_flower.data import DataSet, Examples, SiteData
from mdc_flower.jobs.classification import ClassificationJob
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import EvalResult, TrainResult, TrainSettings, evaluate
from strategies.exchange.metrics import numbers
from strategies.method.round_plan import RoundPlan

CPU = torch.device("cpu")


def plan(**changes: Any) -> RoundPlan:
    """Return a plan of one epoch at learning rate 1."""
    fields: dict[str, Any] = {
        "round": 1,
        "local_epochs": 1,
        "lr_max": 1.0,
        "lr_min": 1.0,
        "shape": "constant",
        "seed": 1,
    }
    if "local_steps" in changes:
        fields["local_epochs"] = 0
    return RoundPlan(**(fields | changes))


def numbered(count: int, num_classes: int = 2, groups: Sequence[object] | None = None) -> Examples:
    """Return float32 examples of one value, the row's number, with classes in turn."""
    rows = np.arange(count)
    return Examples(
        rows.astype(np.float32)[:, None],
        (rows % num_classes).astype(np.int64),
        None if groups is None else np.asarray(groups),
    )


def dataset_of(train: Examples, test: Examples, num_classes: int = 2, **changes: Any) -> DataSet:
    """Return a data set with classes named by their numbers."""
    fields: dict[str, Any] = {"name": "numbers", "train": train, "test": test}
    names = [str(label) for label in range(num_classes)]
    return DataSet(**(fields | changes), class_names=names)


def vectors(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> Tensors:
    """Return float32 vectors and their classes."""
    return Tensors(torch.tensor(rows), torch.tensor(labels))


def job_of(
    data: Tensors,
    settings: TrainSettings | None = None,
    pipeline: InputPipeline | None = None,
    new_model: Callable[[], nn.Module] = nn.Identity,
    **others: Tensors,
) -> ClassificationJob:
    """Return a classification job that trains on ``data``; ``others`` are further splits."""
    splits = {"train": data, **others}
    return ClassificationJob(
        new_model, splits, settings or TrainSettings(), pipeline or InputPipeline()
    )


def evaluated(
    model: nn.Module,
    data: Tensors,
    pipeline: InputPipeline | None = None,
    dtype: torch.dtype | None = None,
) -> EvalResult:
    """Evaluate a model on examples."""
    return evaluate(model, job_of(data, pipeline=pipeline), "train", CPU, dtype)


def accuracy_of(result: EvalResult | TrainResult) -> float:
    """Return the accuracy in a result."""
    return numbers(result.metrics)["accuracy"]


def site_job(
    new_model: Callable[[], nn.Module],
    data: SiteData,
    settings: TrainSettings,
    pipeline: InputPipeline,
) -> ClassificationJob:
    """Return the job of a site with these examples."""
    validation = Tensors.of(data.validation)
    return job_of(Tensors.of(data.train), settings, pipeline, new_model, validation=validation)


def linear(weights: Sequence[Sequence[float]]) -> nn.Linear:
    """Return a linear model of these weights (outputs x inputs), without a bias."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = nn.Linear(len(weights[0]), len(weights), bias=False)
        model.weight.copy_(torch.tensor(weights))
    return model


def state_of(model: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Return copies of a model's parameters and buffers."""
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have equal parameters and buffers, to the bit."""
    first, second = state_of(one), state_of(other)
    return first.keys() == second.keys() and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )
