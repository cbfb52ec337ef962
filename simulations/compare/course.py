"""The course of a training without exchanges: how many steps it has, and how much work they are.

Work is counted in the budget's unit, so that all arms can be drawn over the same axis: passes over
the data that the arm has, or, if the budget counts optimizer steps, steps of all sites together.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mdc_flower.config import RunConfig, SiteConfig, read_site_config
from mdc_flower.jobs.run_task import RunTask, load_run_task
from mdc_flower.training.job import Job
from simulations.compare.arm import Protocol

CURVE_POINTS = 20
"""Maximum number of points on a curve; each costs an evaluation on two splits."""


@dataclass(frozen=True)
class Course:
    """The optimizer steps of one model.

    Attributes
    ----------
    steps : int
        Number of optimizer steps.
    per_unit : int
        Steps for each unit of the budget.
    examples_per_unit : int
        Examples that these steps train on.
    """

    steps: int
    per_unit: int
    examples_per_unit: int

    def done(self, step: int) -> int | float:
        """Return the work after a step, in units of the budget."""
        whole, rest = divmod(step, self.per_unit)
        return step / self.per_unit if rest else whole

    def examples(self, step: int) -> int:
        """Return the number of examples trained on after a step."""
        return round(self.done(step) * self.examples_per_unit)

    def marks(self) -> Iterator[int]:
        """Yield the steps after which a curve has a point; the last step is the last."""
        stride = self.per_unit * math.ceil(self.steps / self.per_unit / CURVE_POINTS)
        yield from range(stride, self.steps, stride)
        yield self.steps


def with_batches_of(config: RunConfig, protocol: Protocol) -> RunConfig:
    """Return the config with which a centralized arm trains: with the protocol's batch size."""
    if protocol != "equal-steps":
        return config
    return config.model_copy(update={"batch_size": config.num_sites * config.batch_size})


def pooled_course(config: RunConfig, protocol: Protocol, job: Job) -> Course:
    """Return the course of centralized training.

    Parameters
    ----------
    config
        The config that all arms share, with the batch size of the sites.
    protocol
        See `simulations.compare.arm.ArmTable`.
    job
        The pooled job of `pooled_task`.

    Raises
    ------
    ConfigError
        If the budget counts passes and the data are a stream.
    """
    if config.unit == "steps":
        of_all_sites = config.num_sites * config.batch_size
        if protocol == "equal-steps":
            return Course(config.budget, 1, of_all_sites)
        steps = config.budget * (config.num_sites if protocol == "equal-passes" else 1)
        return Course(steps, config.num_sites, of_all_sites)
    course = course_of(config, job)
    if protocol != "equal-time":
        return course
    return Course(site_steps(config), course.per_unit, course.examples_per_unit)


def course_of(config: RunConfig, job: Job) -> Course:
    """Return the course of a job that spends the whole budget on its own training examples."""
    if config.unit == "steps":
        return Course(config.budget, 1, config.batch_size)
    per_pass = job.steps_per_epoch()
    return Course(config.epoch_budget * per_pass, per_pass, job.size("train") or 0)


def site_steps(config: RunConfig) -> int:
    """Return the optimizer steps of a run, of the site that has most: the others wait for it."""
    if config.unit == "steps":
        return config.budget
    task = load_run_task(config)
    return config.epoch_budget * max(
        task.site_job(site).steps_per_epoch() for site in simulated_sites(config)
    )


def pooled_task(config: RunConfig, protocol: Protocol) -> RunTask:
    """Return the task of centralized training, with the protocol's batch size."""
    return load_run_task(with_batches_of(config, protocol))


def simulated_sites(config: RunConfig) -> list[SiteConfig]:
    """Return the configs of all simulated sites."""
    return [
        read_site_config({"partition-id": number, "num-partitions": config.num_sites})
        for number in range(config.num_sites)
    ]
