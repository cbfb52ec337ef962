"""The smallest possible jobs of each kind, as a user would write them."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import IterableDataset, Subset, TensorDataset

from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.language_model import causal_language_model
from mdc_flower.jobs.metrics import JobMetric, mean_of
from mdc_flower.jobs.multi_label import multi_label
from mdc_flower.jobs.regression import regression
from mdc_flower.jobs.segmentation import segmentation
from mdc_flower.jobs.torch_job import TorchJob, torch_job
from strategies.exchange.metrics import Metric

NUM_TRAIN, NUM_VALIDATION = 24, 12

KEYS: dict[str, Any] = {"epochs": "fixed", "local-epochs": 1, "epoch-budget": 2}


def splits(context: JobContext, inputs: Tensor, targets: Tensor | None = None) -> dict[str, Any]:
    """Return this site's share of the first examples, and its share of the others to validate.

    The coordinator has all of them, so that it evaluates on the pooled validation examples.
    """
    data = TensorDataset(inputs) if targets is None else TensorDataset(inputs, targets)
    train, validation = context.rows(NUM_TRAIN), context.rows(NUM_VALIDATION)
    return {
        "train": Subset(data, train.tolist()),
        "validation": Subset(data, [NUM_TRAIN + row for row in validation.tolist()]),
        "batch_size": 4,
    }


def numbers(*shape: int) -> Tensor:
    """Return the same normal numbers each time; the first axis has one entry per example."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(NUM_TRAIN + NUM_VALIDATION, *shape, generator=generator)


def classification(context: JobContext) -> TorchJob:
    """Return the classification of vectors of length 4: is the first value above 0?"""
    x = numbers(4)
    return torch_job(
        model=lambda: nn.Linear(4, 2),
        loss=functional.cross_entropy,
        metrics=[
            mean_of("accuracy", "max", _right, unit="%", low=0.0, high=1.0, selects=True),
        ],
        **splits(context, x, (x[:, 0] > 0).long()),
    )  # fmt: skip


BASE = [0.0]
"""Added to the frozen weights of `adapted`; a test may change it."""


def adapted(context: JobContext) -> TorchJob:
    """Return the same job for a frozen layer with a trainable one behind it."""

    def model() -> nn.Module:
        frozen = nn.Linear(4, 4).requires_grad_(False)
        frozen.weight += BASE[0]
        return nn.Sequential(frozen, nn.Tanh(), nn.Linear(4, 2))

    return replace(classification(context), new_model=model)


def with_another_base(context: JobContext) -> TorchJob:
    """Return the same job with other frozen weights, as a site with another file has them."""
    job = adapted(context)

    def model() -> nn.Module:
        network = job.model()
        with torch.no_grad():
            network.get_parameter("0.weight")[0, 0] += 1e-3
        return network

    return replace(job, new_model=model)


class Steady(nn.BatchNorm1d):
    """A BatchNorm layer that stays in evaluation mode."""

    def train(self, mode: bool = True) -> "Steady":
        """Stay in evaluation mode."""
        return super().train(False)


def steady(context: JobContext) -> TorchJob:
    """Return a job with a frozen BatchNorm layer that training leaves as it is."""
    return _behind(Steady(4), context)


def drifting(context: JobContext) -> TorchJob:
    """Return the same job, but the layer's statistics change in training.

    The coordinator has no training examples, so it cannot find out.
    """
    return _behind(nn.BatchNorm1d(4), context)


def _behind(layer: nn.Module, context: JobContext) -> TorchJob:
    job = classification(context)

    def model() -> nn.Module:
        return nn.Sequential(deepcopy(layer).requires_grad_(False), nn.Linear(4, 2))

    return replace(job, new_model=model, splits=job.splits if context.site else {})


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(1) == targets


def labels(context: JobContext) -> TorchJob:
    """Return a multi-label job: which of 3 values are above 0?"""
    x = numbers(3)
    return multi_label(lambda: nn.Linear(3, 3), 3, **splits(context, x, (x > 0).float()))


def line(context: JobContext) -> TorchJob:
    """Return a regression: the sum of 3 values."""
    x = numbers(3)
    return regression(lambda: nn.Linear(3, 1), unit="m", **splits(context, x, x.sum(1, True)))


def pixels(context: JobContext) -> TorchJob:
    """Return a segmentation of images of 4 by 4 pixels; a row of each does not count."""
    x = numbers(1, 4, 4)
    targets = (x[:, 0] > 0).long()
    targets[:, 3] = 255
    return segmentation(lambda: nn.Conv2d(1, 2, 1), 2, **splits(context, x, targets))


class Bigram(nn.Module):
    """Predicts a token from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 5)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the logits as Hugging Face's models do."""
        return {"logits": self.table(input_ids)}


def texts(context: JobContext) -> TorchJob:
    """Return a language model of sequences that count up; each has another number of tokens."""
    starts = torch.arange(NUM_TRAIN + NUM_VALIDATION)
    tokens = (starts[:, None] + torch.arange(8)) % 5
    lengths = 2 + starts % 7
    marked = torch.where(torch.arange(8) < lengths[:, None], tokens, -100)

    def collate(examples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        inputs, targets = (torch.stack(parts) for parts in zip(*examples, strict=True))
        return {"input_ids": inputs, "labels": targets}

    return causal_language_model(Bigram, collate=collate, **splits(context, tokens, marked))


class Counting(IterableDataset[tuple[Tensor, Tensor]]):
    """An endless stream of numbers and their doubles, from 0 at each beginning."""

    def __init__(self, last: int = 10**9) -> None:
        self.last = last

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets."""
        for number in range(self.last):
            value = torch.tensor([number % 7 / 7])
            yield value, 2 * value


def stream(context: JobContext) -> TorchJob:
    """Return a regression on an endless stream."""
    return regression(lambda: nn.Linear(1, 1), train=Counting(), batch_size=4)


seen: list[float] = []
"""The inputs on which `recorded_stream` was trained, in order."""


def recorded_stream(context: JobContext) -> TorchJob:
    """Return the same, recording every input on which a model is trained."""

    class Recording(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.extend(inputs.flatten().tolist())
            return super().forward(inputs)

    return regression(lambda: Recording(1, 1), train=Counting(), batch_size=4)


class CountingUp(IterableDataset[dict[str, Tensor]]):
    """An endless stream of sequences with different numbers of tokens."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield tokens and labels."""
        number = 0
        while True:
            number += 1
            tokens = (number + torch.arange(8)) % 5
            marked = torch.where(torch.arange(8) < 2 + number % 7, tokens, -100)
            yield {"input_ids": tokens, "labels": marked}


def stream_of_texts(context: JobContext) -> TorchJob:
    """Return a language model on an endless stream."""
    return causal_language_model(Bigram, train=CountingUp(), batch_size=4)


def recalls(context: JobContext) -> TorchJob:
    """Return a classification with a metric that is a list, and one that is called recall."""
    x = numbers(4)

    def hits(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.bincount(targets[outputs.argmax(1) == targets], minlength=2).double()

    return torch_job(
        model=lambda: nn.Linear(4, 2),
        loss=nn.CrossEntropyLoss(weight=torch.ones(2), label_smoothing=0.1),
        metrics=[
            JobMetric(Metric("each", "max", list, "each", 2), hits),
            JobMetric(Metric("recall", "max", max, "hits", 2), hits),
        ],
        **splits(context, x, (x[:, 0] > 0).long()),
    )
