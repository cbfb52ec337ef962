"""BatchNorm's running statistics: find their arrays, and recompute them.

In training, a BatchNorm layer normalizes with each batch's statistics; the running statistics
matter only in evaluation. They can therefore be recomputed at any time from the weights and data.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mdc_flower.models.exchange import ALL, exchanged_names
from mdc_flower.models.tensors import first_names
from mdc_flower.training.job import Job, Pass
from mdc_flower.training.loop import evaluating
from strategies.aggregation.pooled_statistics import Layers
from strategies.common.errors import ConfigError, DeadlineError
from strategies.common.seeds import derive_seed

STATISTICS_KEY = "batch-norm-statistics"
"""Metadata key for the origin of a model's statistics; without it, they are site averages."""

INITIAL, RECALIBRATED = "initial", "recalibrated"


def statistics_of(model: nn.Module) -> Layers:
    """Map the name of each running mean to the name of its variance, in model order.

    This covers all layers of PyTorch's BatchNorm family, including subclasses, that keep running
    statistics. Names are as in `mdc_flower.models.tensors.tensors_of`; a shared layer occurs once.
    """
    first = first_names(model)
    return {
        first[_of(name, "running_mean")]: first[_of(name, "running_var")] for name in _layers(model)
    }


def buffers_of(model: nn.Module) -> frozenset[str]:
    """Return the names of all buffers of such layers, including counters."""
    first = first_names(model)
    kept = {
        _of(name, buffer)
        for name, layer in _layers(model).items()
        for buffer in dict(layer.named_buffers(recurse=False))
    }
    return frozenset(first[name] for name in kept & first.keys())


def check_policy(
    model: nn.Module, spec: str, policy: str, exchange: str = ALL, keep: str = ""
) -> None:
    """Refuse a policy other than ``average`` for a model without running statistics.

    The policies are for all layers, so all statistics must then be exchanged.

    Raises
    ------
    ConfigError
        Naming the model. Also if ``exchange`` or ``keep`` do not fit it; see `exchanged_names`.
    """
    exchanged = exchanged_names(model, exchange, keep)
    if policy != "average" and not _layers(model):
        raise ConfigError(
            "the model has no BatchNorm layer that keeps running statistics",
            where="batch-norm",
            got=f"{policy!r} with model {spec!r}",
            expected="'average', which does nothing for such a model",
        )
    if policy != "average" and (rest := sorted(buffers_of(model) - set(exchanged))):
        raise ConfigError(
            "a BatchNorm layer's statistics are not exchanged",
            where="batch-norm",
            got=f"{policy!r} with exchange {exchange!r}, without {rest[0]!r}",
            expected="'average', or an `exchange` that contains all statistics",
        )


def recalibrate(
    model: nn.Module,
    job: Job,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    seed: int,
    site: str,
    stop_at: float = math.inf,
) -> None:
    """Recompute the running statistics in one pass over the examples; change nothing else.

    As in `torch.optim.swa_utils.update_bn`, each statistic becomes the mean of the batches'
    statistics. Two things differ. Only the BatchNorm layers are in training mode, because dropout
    would add noise and shift the variances, compared with evaluation. And the examples are
    shuffled, because stored examples are often sorted by class, and batches of one class have too
    little variance. The order and the augmentation depend only on the seed and the site.

    Parameters
    ----------
    model
        The model to recalibrate.
    job
        Its training examples are used, in the batches of training and augmented as in training:
        the weights were fitted to such examples.
    device, autocast_dtype
        As for evaluation.
    seed, site
        The run's seed, and the site that has the data.
    stop_at
        Deadline, as a time of `time.monotonic`.

    Raises
    ------
    DeadlineError
        If the deadline passes before the end.
    """
    order = torch.Generator().manual_seed(derive_seed(seed, "statistics", site))
    # As in training; otherwise a process that has not trained would compute different bits.
    job.prepare(model)
    with evaluating(model, device, autocast_dtype), _recomputing(model):
        for batch in job.batches(Pass("train", device, order, augment=True)):
            if time.monotonic() >= stop_at:
                raise DeadlineError("the deadline passed before the statistics were computed")
            job.forward(model, batch)


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Reset the statistics, and let the layers average over all batches inside the block."""
    layers = set(_layers(model).values())
    momenta = {layer: layer.momentum for layer in layers}
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        yield
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _of(layer: str, buffer: str) -> str:
    return f"{layer}.{buffer}" if layer else buffer
