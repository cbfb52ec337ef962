"""Baselines that train without averaging, with the same model, data, plan and training loop."""

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdc_flower.config import RunConfig, SiteConfig, read_site_config
from mdc_flower.jobs.classification import RECALL, ClassificationJob, class_probabilities
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.jobs.task import load_task
from mdc_flower.models.tensors import tensors_of
from mdc_flower.training.batches import Tensors
from mdc_flower.training.job import Job, values_of
from mdc_flower.training.loop import EvalResult, evaluate, train
from mdc_flower.training.numerics import repeatable
from simulations.results.outcome import SPLITS, Outcome, Point
from strategies.common.errors import ConfigError
from strategies.exchange.metrics import ACCURACY, LOSS, numbers
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
        Both are evaluated as global models are, on the coordinator's examples.
    """
    started = time.monotonic()
    plan = _one_cycle(config)
    task = load_run_task(config)
    held = task.coordinator_job(config.num_sites)
    if kind == "centralized":
        job = task.pooled_job(config.num_sites)
    else:
        job = task.site_job(simulated_site(config, 0))
    model = job.model()
    points: list[Point] = []

    def after_epoch(epoch: int) -> None:
        if not _on_curve(epoch, config.epoch_budget):
            return
        results = {
            split: evaluate(model, held, split, task.device, task.settings.autocast_dtype)
            for split in SPLITS
            if held.size(split) != 0
        }
        seconds = time.monotonic() - started
        points.append(_point(config, epoch, results, seconds=seconds))

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
    splits = {"validation": Tensors.of(held.validation), "test": Tensors.of(held.test)}
    # For each split: probabilities summed over the sites, by number of epochs trained.
    sums: dict[str, dict[int, Tensor]] = {split: {} for split in splits}
    model_bytes = 0
    for site in range(config.num_sites):
        job: Job = task.site_job(simulated_site(config, site))
        model = job.model()
        model_bytes += sum(tensor.nbytes for tensor in tensors_of(model).values())

        def after_epoch(epoch: int, model: nn.Module = model) -> None:
            if not _on_curve(epoch, config.epoch_budget):
                return
            for split, by_epoch in sums.items():
                probabilities = class_probabilities(
                    model,
                    splits[split].inputs,
                    task.pipeline,
                    task.device,
                    task.settings.autocast_dtype,
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
                {
                    split: _eval_result(by_epoch[epoch] / config.num_sites, splits[split].labels)
                    for split, by_epoch in sums.items()
                },
                exchanges=1,
                received_bytes=model_bytes,
                # The models are trained one after the other: scale the total time by epochs.
                seconds=seconds * epoch / config.epoch_budget,
            )
            for epoch in sums["test"]
        ]
    )


def _point(
    config: RunConfig,
    epoch: int,
    results: Mapping[str, EvalResult],
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
        validation=_values(results.get("validation")),
        test=_values(results.get("test")),
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


def _values(result: EvalResult | None) -> dict[str, float]:
    """Return loss and metrics by name; empty if nothing was evaluated."""
    return {} if result is None else {LOSS.name: result.loss, **numbers(result.metrics)}


def _eval_result(probabilities: Tensor, labels: Tensor) -> EvalResult:
    """Return loss and metrics, given probabilities of shape (examples, classes)."""
    right, classes = probabilities.argmax(1) == labels, probabilities.shape[1]
    of_class = [torch.bincount(rows, minlength=classes) for rows in (labels[right], labels)]
    sums = {
        ACCURACY.sums: [float(right.sum()), float(len(right))],
        RECALL: torch.cat(of_class).double().tolist(),
    }
    loss = functional.nll_loss(probabilities.log(), labels)
    return EvalResult(len(labels), float(loss), values_of(ClassificationJob.metrics, sums))


def simulated_site(config: RunConfig, number: int) -> SiteConfig:
    """Return the config of a simulated site."""
    return read_site_config({"partition-id": number, "num-partitions": config.num_sites})
