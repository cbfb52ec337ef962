"""Baselines that train without averaging, with the same model, data, plan and training loop."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdc_flower.config import RunConfig
from mdc_flower.jobs.classification import RECALL, ClassificationJob, class_probabilities
from mdc_flower.jobs.initial_model import initialized
from mdc_flower.jobs.run_task import RunTask, load_run_task
from mdc_flower.jobs.task import load_task
from mdc_flower.models.tensors import tensors_of
from mdc_flower.training.batches import Tensors
from mdc_flower.training.job import Job, Pass, values_of
from mdc_flower.training.loop import EvalResult, TrainSettings, evaluate, train
from mdc_flower.training.numerics import repeatable
from simulations.compare.arm import Protocol
from simulations.compare.course import (
    Course,
    course_of,
    pooled_course,
    pooled_task,
    simulated_sites,
)
from simulations.compare.per_step import bytes_of_an_average
from simulations.results.outcome import SPLITS, Outcome, Point
from strategies.common.errors import ConfigError
from strategies.exchange.metrics import ACCURACY, LOSS, numbers
from strategies.method.round_plan import RoundPlan


def train_without_exchange(
    config: RunConfig, kind: str, protocol: Protocol = "equal-passes"
) -> Outcome:
    """Train one model for the whole budget without interruption.

    Parameters
    ----------
    config
        Budget, ``lr-max``, ``lr-min-fraction`` and ``lr-shape`` define one learning-rate cycle
        over the whole training; ``num-sites`` and the partition keys define the sites' data.
    kind
        ``centralized``: train on the training examples of all sites; ``one-site``: of site-0 only.
        Both are evaluated as global models are, on the coordinator's examples.
    protocol
        For ``centralized``; see `simulations.compare.arm.ArmTable`. ``equal-steps`` counts the
        bytes of averaging after every step.
    """
    started = time.monotonic()
    _check_budget(config)
    held = load_run_task(config).coordinator_job(config.num_sites)
    if kind == "centralized":
        task = pooled_task(config, protocol)
        job = task.pooled_job(config.num_sites)
        course = pooled_course(config, protocol, job)
    else:
        task = load_run_task(config)
        job = task.site_job(simulated_sites(config)[0])
        course = course_of(config, job)
    model = initialized(job.model(), config)
    per_step = bytes_of_an_average(config) // 2 if protocol == "equal-steps" else 0
    points: list[Point] = []

    def after_step(step: int) -> None:
        points.append(
            _point(
                config,
                course.done(step),
                evaluated(task, held, model),
                steps=step,
                examples=course.examples(step),
                exchanges=step if per_step else 0,
                sent_bytes=per_step * step,
                received_bytes=per_step * step,
                seconds=time.monotonic() - started,
            )
        )

    with repeatable(config.threads_per_site, task.device):
        _train(model, job, config, course, task.settings, task.device, kind, after_step)
    return Outcome(points)


def train_ensemble(config: RunConfig) -> Outcome:
    """Train one model per site for the whole budget, and average their predictions.

    The predicted class is the one with the highest softmax probability, averaged over the sites'
    models. Every site sends its model once, which counts as one exchange in one direction.

    Parameters
    ----------
    config
        See `train_without_exchange`.
    """
    started = time.monotonic()
    _check_budget(config)
    task = load_task(config)
    held = task.coordinator_data(config.num_sites)
    splits = {"validation": Tensors.of(held.validation), "test": Tensors.of(held.test)}
    # For each split: probabilities summed over the sites, by work done.
    sums: dict[str, dict[float, Tensor]] = {split: {} for split in splits}
    model_bytes, courses = 0, []
    for number, site in enumerate(simulated_sites(config)):
        job: Job = task.site_job(site)
        model, course = initialized(job.model(), config), course_of(config, job)
        courses.append(course)
        model_bytes += sum(tensor.nbytes for tensor in tensors_of(model).values())

        def after_step(step: int, model: nn.Module = model, course: Course = course) -> None:
            for split, by_work in sums.items():
                probabilities = class_probabilities(
                    model,
                    splits[split].inputs,
                    task.pipeline,
                    task.device,
                    task.settings.autocast_dtype,
                )
                done = course.done(step)
                previous = by_work.get(done)
                by_work[done] = probabilities if previous is None else previous + probabilities

        with repeatable(config.threads_per_site, task.device):
            name = f"site-{number}"
            _train(model, job, config, course, task.settings, task.device, name, after_step)
    seconds = time.monotonic() - started
    return Outcome(
        [
            _point(
                config,
                done,
                {
                    split: _eval_result(by_work[done] / config.num_sites, splits[split].labels)
                    for split, by_work in sums.items()
                },
                steps=max(round(done * course.per_unit) for course in courses),
                examples=sum(round(done * course.examples_per_unit) for course in courses),
                exchanges=1,
                received_bytes=model_bytes,
                # The models are trained one after the other: scale the total time by work.
                seconds=seconds * done / config.budget,
            )
            for done in sums["test"]
        ]
    )


def _train(
    model: nn.Module,
    job: Job,
    config: RunConfig,
    course: Course,
    settings: TrainSettings,
    device: torch.device,
    site: str,
    after_step: Callable[[int], None],
) -> None:
    """Train a model in one round; call ``after_step`` after each step that the course marks."""
    plan = RoundPlan(
        round=1,
        local_steps=course.steps,
        lr_max=config.lr_max,
        lr_min=config.lr_max * config.lr_min_fraction,
        shape=config.lr_shape,
        seed=config.seed,
    )
    *marks, last = course.marks()
    watched: Any = _Watched(job, frozenset(marks), after_step)
    train(model, watched, plan, settings, device, site)
    after_step(last)


class _Watched:
    """A job that calls a function after some of the optimizer steps.

    The training loop asks for a batch when it has taken the step with the one before.
    """

    def __init__(self, job: Job, marks: frozenset[int], after_step: Callable[[int], None]) -> None:
        self._job, self._marks, self._after_step = job, marks, after_step
        self._step = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def batches(self, which: Pass) -> Iterator[Any]:
        """Yield the batches of a pass."""
        for batch in self._job.batches(which):
            yield batch
            self._step += 1
            if self._step in self._marks:
                self._after_step(self._step)


def _check_budget(config: RunConfig) -> None:
    if not config.budget:
        raise ConfigError(
            "training without exchanges needs a budget",
            where="step-budget" if config.unit == "steps" else "epoch-budget",
            got=0,
            expected="1 or more",
        )


def _point(
    config: RunConfig,
    done: int | float,
    results: Mapping[str, EvalResult],
    *,
    steps: int,
    examples: int,
    seconds: float,
    exchanges: int = 0,
    sent_bytes: int = 0,
    received_bytes: int = 0,
) -> Point:
    return Point(
        round=0,
        exchanges=exchanges,
        epochs=done,
        local_epochs=done,
        lr_max=config.lr_max,
        relative_change=None,
        validation=metrics_of(results.get("validation")),
        test=metrics_of(results.get("test")),
        sent_bytes=sent_bytes,
        received_bytes=received_bytes,
        seconds=seconds,
        steps=steps,
        examples=examples,
    )


def evaluated(task: RunTask, held: Job, model: nn.Module) -> dict[str, EvalResult]:
    """Return the results of a model on each split of the coordinator's job that has examples."""
    return {
        split: evaluate(model, held, split, task.device, task.settings.autocast_dtype)
        for split in SPLITS
        if held.size(split) != 0
    }


def metrics_of(result: EvalResult | None) -> dict[str, float]:
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
