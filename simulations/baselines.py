"""The yardsticks: training without averaging, with the same model, data, plan and loop."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mdc_flower.batches import Tensors
from mdc_flower.config import RunConfig, read_site_config
from mdc_flower.data import Examples
from mdc_flower.numerics import repeatable
from mdc_flower.task import Task, load_task
from mdc_flower.training import evaluate, train
from strategies.errors import ConfigError
from strategies.round_plan import RoundPlan

CURVE_POINTS = 20


@dataclass(frozen=True)
class Point:
    """One point of an arm's curve.

    Attributes
    ----------
    round : int
        Exchanges so far; 0 for training without any.
    epochs : int
        Passes over the data so far.
    validation, test : float
        Accuracy in [0, 1].
    """

    round: int
    epochs: int
    validation: float
    test: float


@dataclass(frozen=True)
class Outcome:
    """What one arm reached with one seed; seconds of wall time on one core a site."""

    points: Sequence[Point]
    rounds: int
    exchanged_bytes: int
    seconds: float


def train_without_exchange(config: RunConfig, kind: str) -> Outcome:
    """Train one model for the whole epoch budget, in one piece.

    Parameters
    ----------
    config
        ``epoch-budget``, ``lr-max``, ``lr-min-fraction`` and ``lr-shape`` make one cycle over
        all of training; ``num-sites`` and the partition say whose data there are.
    kind
        ``centralized``: the union of what all sites train on; ``one-site``: site-0's part.
    """
    if not config.epoch_budget:
        raise ConfigError(
            "training without exchange needs a budget",
            where="epoch-budget",
            got=0,
            expected="1 or more",
        )
    started = time.monotonic()
    task = load_task(config)
    held = task.coordinator_data(config.num_sites)
    data = held.pooled if kind == "centralized" else _first_site(task)
    model = task.new_model()
    splits = [Tensors.of(held.validation), Tensors.of(held.test)]
    points: list[Point] = []
    every = max(1, config.epoch_budget // CURVE_POINTS)

    def after_epoch(epoch: int) -> None:
        if epoch % every and epoch != config.epoch_budget:
            return
        validation, test = (
            evaluate(model, split, task.pipeline, task.device, task.settings.autocast_dtype)
            for split in splits
        )
        points.append(Point(0, epoch, validation.accuracy, test.accuracy))

    plan = RoundPlan(
        round=1,
        local_epochs=config.epoch_budget,
        lr_max=config.lr_max,
        lr_min=config.lr_max * config.lr_min_fraction,
        shape=config.lr_shape,
        seed=config.seed,
    )
    with repeatable(config.threads_per_site):
        train(
            model,
            Tensors.of(data),
            plan,
            task.settings,
            task.pipeline,
            task.device,
            kind,
            after_epoch,
        )
    return Outcome(points, 0, 0, time.monotonic() - started)


def _first_site(task: Task) -> Examples:
    node = {"partition-id": 0, "num-partitions": task.config.num_sites}
    return task.site_data(read_site_config(node)).train
