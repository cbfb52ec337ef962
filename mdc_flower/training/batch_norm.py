"""BatchNorm's running statistics: which arrays they are, and how they are taken anew.

In training a BatchNorm layer normalizes by each batch's own statistics; the running ones matter in
evaluation only. So they can be taken at any time from the weights and some data.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mdc_flower.models.tensors import first_names
from mdc_flower.training.batches import InputPipeline, Tensors, shuffled
from mdc_flower.training.loop import evaluating
from strategies.aggregation.pooled_statistics import Layers
from strategies.common.errors import ConfigError, DeadlineError
from strategies.common.seeds import derive_seed

STATISTICS_KEY = "batch-norm-statistics"
"""Says in a model file what its running statistics are; without it, averaged over the sites."""

INITIAL, RECALIBRATED = "initial", "recalibrated"


def statistics_of(model: nn.Module) -> Layers:
    """Return the name of each running mean with that of its variance, in the model's order.

    All layers of PyTorch's BatchNorm family count, subclasses too, that keep statistics. The names
    are those in `mdc_flower.models.tensors.tensors_of`: a layer used twice is there once.
    """
    first = first_names(model)
    return {
        first[_of(name, "running_mean")]: first[_of(name, "running_var")] for name in _layers(model)
    }


def buffers_of(model: nn.Module) -> frozenset[str]:
    """Return the names of all that such layers keep beside their parameters, counters included."""
    first = first_names(model)
    kept = {
        _of(name, buffer)
        for name, layer in _layers(model).items()
        for buffer in dict(layer.named_buffers(recurse=False))
    }
    return frozenset(first[name] for name in kept & first.keys())


def check_policy(model: nn.Module, spec: str, policy: str) -> None:
    """Refuse a policy other than averaging for a model that has no running statistics.

    Raises
    ------
    ConfigError
        Naming the model.
    """
    if policy != "average" and not _layers(model):
        raise ConfigError(
            "the model has no BatchNorm layer that keeps running statistics",
            where="batch-norm",
            got=f"{policy!r} with model {spec!r}",
            expected="'average', which does nothing for such a model",
        )


def recalibrate(
    model: nn.Module,
    data: Tensors,
    batch_size: int,
    pipeline: InputPipeline,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    seed: int,
    site: str,
    stop_at: float = math.inf,
) -> None:
    """Take the running statistics anew, in one pass over the examples; change nothing else.

    As `torch.optim.swa_utils.update_bn`: each statistic becomes the mean over the batches of
    those batches' own. Two things differ. Only the BatchNorm layers are in training mode: dropout
    would make noise, and shift variances that evaluation, without it, then meets. And the order of
    the examples is given here: stored ones are often sorted by class, and batches of one class
    have too little variance. It depends on the seed and the site, and on nothing else.

    Parameters
    ----------
    model
        Whose statistics are taken.
    data
        Training examples; they are not augmented.
    batch_size
        Examples a batch; a last batch of one is left out, as in training.
    pipeline, device, autocast_dtype
        As for evaluation, for which the statistics are.
    seed, site
        The run's seed, and whose data these are.
    stop_at
        Time of `time.monotonic` at which nobody waits any more.

    Raises
    ------
    DeadlineError
        If that time has come.
    """
    order = torch.Generator().manual_seed(derive_seed(seed, "statistics", site))
    if pipeline.channels_last:
        # As in training: a process that has not trained would compute other bits otherwise.
        model.to(memory_format=torch.channels_last)
    with evaluating(model, device, autocast_dtype), _taking(model):
        for rows in shuffled(len(data), batch_size, order):
            if time.monotonic() >= stop_at:
                raise DeadlineError("the deadline has come before the statistics were taken")
            model(pipeline(data.inputs[rows], device))


@contextmanager
def _taking(model: nn.Module) -> Iterator[None]:
    """Let the layers average over all batches inside the block, beginning anew."""
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
