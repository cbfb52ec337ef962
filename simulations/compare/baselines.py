"""Baselines that train without averaging, with the same model, data, plan and training loop."""

import math
import time

from torch import Tensor, nn
from torch.nn import functional

from mdc_flower.config import RunConfig, read_site_config
from mdc_flower.data import Examples, Part
from mdc_flower.jobs.classification import class_probabilities
from mdc_flower.jobs.task import Task, load_task
from mdc_flower.models.tensors import tensors_of
from mdc_flower.training.batches import Tensors
from mdc_flower.training.loop import EvalResult, evaluate, train
from mdc_flower.training.numerics import repeatable
from simulations.results.outcome import Outcome, Point
from strategies.common.errors import ConfigError
from strategies.exchange.metrics import ACCURACY, numbers
from strategies.method.round_plan import RoundPlan

CURVE_POINTS = 20
"""Maximum number of points on a curve; each costs an evaluation on two splits."""


def train_without_exchange(config: RunConfig, kind: str) -> Outcome:
    """Train one model for the whole epoch budget without interruption.

    Parameters
    ----------
    config
        ``epoch-budget``, ``lr-max``, ``lr-min-fraction`` and ``lr-shape`` define one
        learning-rate cycle over the whole training; ``num-sites`` and the partition keys define
        the sites' data.
    kind
        ``centralized``: train on the training examples of all sites; ``one-site``: of site-0 only.
    """
    started = time.monotonic()
    plan = _one_cycle(config)
    task = load_task(config)
    held = task.coordinator_data(config.num_sites)
    data = held.pooled if kind == "centralized" else _examples(task, 0)
    job = task.job({"train": data, "validation": held.validation, "test": held.test})
    model = job.model()
    points: list[Point] = []

    def after_epoch(epoch: int) -> None:
        if not _on_curve(epoch, config.epoch_budget):
            return
        validation, test = (
            evaluate(model, job, split, task.device, task.settings.autocast_dtype)
            for split in ("validation", "test")
        )
        seconds = time.monotonic() - started
        points.append(_point(config, epoch, validation, test, seconds=seconds))

    with repeatable(config.threads_per_site, task.device):
        train(model, job, plan, task.settings, task.device, kind, after_epoch)
    return Outcome(points)


def train_ensemble(config: RunConfig) -> Outcome:
    """Train one model per site for the whole epoch budget, and average their predictions.

    The predicted class is the one with the highest softmax probability, averaged over the sites'
    models. Every site sends its model once, which counts as one exchange in one direction.

    Parameters
    ----------
    config
        See `train_without_exchange`.
    """
    started = time.monotonic()
    plan = _one_cycle(config)
    task = load_task(config)
    held = task.coordinator_data(config.num_sites)
    splits = [Tensors.of(held.validation), Tensors.of(held.test)]
    # For each split: probabilities summed over the sites, by number of epochs trained.
    sums: list[dict[int, Tensor]] = [{}, {}]
    model_bytes = 0
    for site in range(config.num_sites):
        job = task.job({"train": _examples(task, site)})
        model = job.model()
        model_bytes += sum(tensor.nbytes for tensor in tensors_of(model).values())

        def after_epoch(epoch: int, model: nn.Module = model) -> None:
            if not _on_curve(epoch, config.epoch_budget):
                return
            for split, by_epoch in zip(splits, sums, strict=True):
                probabilities = class_probabilities(
                    model, split.inputs, task.pipeline, task.device, task.settings.autocast_dtype
                )
                previous = by_epoch.get(epoch)
                by_epoch[epoch] = probabilities if previous is None else previous + probabilities

        with repeatable(config.threads_per_site, task.device):
            train(model, job, plan, task.settings, task.device, f"site-{site}", after_epoch)
    seconds = time.monotonic() - started
    return Outcome(
        [
            _point(
                config,
                epoch,
                *(
                    _eval_result(by_epoch[epoch] / config.num_sites, split)
                    for by_epoch, split in zip(sums, splits, strict=True)
                ),
                exchanges=1,
                received_bytes=model_bytes,
                # The models are trained one after the other: scale the total time by epochs.
                seconds=seconds * epoch / config.epoch_budget,
            )
            for epoch in sums[0]
        ]
    )


def _point(
    config: RunConfig,
    epoch: int,
    validation: EvalResult,
    test: EvalResult,
    *,
    seconds: float,
    exchanges: int = 0,
    received_bytes: int = 0,
) -> Point:
    return Point(
        round=0,
        exchanges=exchanges,
        epochs=epoch,
        local_epochs=epoch,
        lr_max=config.lr_max,
        relative_change=None,
        validation=numbers(validation.metrics)[ACCURACY.name],
        validation_loss=validation.loss,
        test=numbers(test.metrics)[ACCURACY.name],
        test_loss=test.loss,
        sent_bytes=0,
        received_bytes=received_bytes,
        seconds=seconds,
    )


def _one_cycle(config: RunConfig) -> RoundPlan:
    """Return a plan that spends the whole budget in one round."""
    if not config.epoch_budget:
        raise ConfigError(
            "training without exchanges needs an epoch budget",
            where="epoch-budget",
            got=0,
            expected="1 or more",
        )
    return RoundPlan(
        round=1,
        local_epochs=config.epoch_budget,
        lr_max=config.lr_max,
        lr_min=config.lr_max * config.lr_min_fraction,
        shape=config.lr_shape,
        seed=config.seed,
    )


def _on_curve(epoch: int, budget: int) -> bool:
    return epoch % math.ceil(budget / CURVE_POINTS) == 0 or epoch == budget


def _eval_result(probabilities: Tensor, split: Tensors) -> EvalResult:
    """Return loss and accuracy, given probabilities of shape (examples, classes)."""
    right = probabilities.argmax(1) == split.labels
    loss = functional.nll_loss(probabilities.log(), split.labels)
    return EvalResult(len(split), float(loss), {ACCURACY.name: float(right.double().mean())})


def _examples(task: Task, site: int) -> Examples | Part:
    node = {"partition-id": site, "num-partitions": task.config.num_sites}
    return task.site_data(read_site_config(node)).train
