"""Estimate how long a comparison takes, before it starts."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdc_flower.config import RunConfig
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.training.loop import train
from mdc_flower.training.numerics import repeatable
from simulations.compare.arm import Arm, Protocol
from simulations.compare.baselines import evaluated
from simulations.compare.comparison_file import Comparison
from simulations.compare.course import (
    Course,
    course_of,
    pooled_course,
    pooled_task,
    simulated_sites,
    with_batches_of,
)
from simulations.compare.equal_budgets import Configs, configs_of
from simulations.compare.job_files import job_folder, read_result
from simulations.compare.rounds import certain_rounds
from simulations.results.rows import AVERAGING
from strategies.method.round_plan import RoundPlan

WARM_UP, MEASURED = 2, 6
"""Optimizer steps before and during a measurement."""


@dataclass(frozen=True)
class Estimate:
    """How long a comparison will take.

    Attributes
    ----------
    seconds : float
        Wall time until all jobs have finished, with all workers busy.
    num_jobs, num_finished : int
        Jobs in all, and those whose results are stored.
    basis : str
        What the estimate is based on.
    """

    seconds: float
    num_jobs: int
    num_finished: int
    basis: str


def estimated(
    comparison: Comparison,
    arms: Sequence[Arm],
    configs: Configs,
    output: Path,
    workers: int,
    pool: Executor,
) -> Estimate:
    """Estimate the time of a comparison.

    An arm that has results in the output folder takes what they took. For the others, the time of
    an optimizer step and of an evaluation is measured, and multiplied by their numbers.

    Parameters
    ----------
    configs
        The configs of each arm; see `simulations.compare.equal_budgets.configs_of`.
    output
        The output folder; it need not exist.
    workers
        Number of processes that will share the jobs.
    pool
        Where times are measured. It should be the pool of the jobs: a GPU in exclusive mode serves
        one process only.
    """
    measured: _Measured | None = None
    seconds, num_jobs, num_finished = 0.0, 0, 0
    for own, folders in _phases(comparison, arms, configs, output):
        for arm in arms:
            found = [read_result(folder) for folder in folders[arm.key]]
            known = [one.outcome.final.seconds for one in found if one and one.outcome.points]
            left = found.count(None)
            num_jobs += len(found)
            num_finished += len(found) - left
            if known:
                seconds += left * float(np.mean(known))
            elif left:
                measured = measured or _Measured(configs[arms[0].key][0], pool)
                rounds = own[arm.table.rounds_of or arm.key][0]
                seconds += left * measured.seconds_of(arm, own[arm.key][0], rounds)
    parts = [measured.basis] if measured else []
    if num_finished:
        parts.append(f"{num_finished} earlier results in {output}")
    parallel = max(1, min(workers, num_jobs - num_finished))
    return Estimate(seconds / parallel, num_jobs, num_finished, " and ".join(parts))


def _phases(
    comparison: Comparison, arms: Sequence[Arm], configs: Configs, output: Path
) -> Iterator[tuple[Configs, dict[str, list[Path]]]]:
    """Yield the folders of all jobs by arm, those of equal work together, with their configs."""
    tried = {arm.key: list(_tuning_folders(comparison, arm, output)) for arm in arms}
    reported = {
        arm.key: [job_folder(output, arm.key, seed) for seed in comparison.seeds] for arm in arms
    }
    if comparison.in_tuning.config == comparison.config:
        yield configs, {key: [*tried[key], *reported[key]] for key in reported}
        return
    yield configs_of(comparison.in_tuning, arms), tried
    yield configs, reported


def _tuning_folders(comparison: Comparison, arm: Arm, output: Path) -> Iterator[Path]:
    if comparison.tuning:
        for index in range(len(comparison.candidates(arm.key))):
            for seed in comparison.tuning.seeds:
                yield job_folder(output, arm.key, seed, index)


class _Measured:
    """The times of a step and of an evaluation, measured with the config of one arm."""

    def __init__(self, config: RunConfig, pool: Executor) -> None:
        self._config, self._pool = config, pool
        self._step_seconds: dict[int, float] = {}
        self._evaluation_seconds = pool.submit(_evaluation_seconds, config).result()

    @property
    def basis(self) -> str:
        """Return what was measured, in words."""
        steps = ", ".join(
            f"{1000 * seconds:.3g} ms for a step of {size} examples"
            for size, seconds in self._step_seconds.items()
        )
        return f"measured here: {steps}, {self._evaluation_seconds:.2g} s for an evaluation"

    def seconds_of(self, arm: Arm, config: RunConfig, rounds: RunConfig) -> float:
        """Return the time of one job of an arm on one core; ``rounds`` says how many it has."""
        steps, evaluations = _amount(arm, config)
        if arm.table.kind in AVERAGING:
            evaluations = sum(1 for _ in certain_rounds(rounds))
        return steps * self._seconds_of_step(arm) + evaluations * self._evaluation_seconds

    def _seconds_of_step(self, arm: Arm) -> float:
        protocol = arm.table.protocol
        size = with_batches_of(self._config, protocol).batch_size
        if size not in self._step_seconds:
            measuring = self._pool.submit(_step_seconds, self._config, protocol)
            self._step_seconds[size] = measuring.result()
        return self._step_seconds[size]


def _amount(arm: Arm, config: RunConfig) -> tuple[int, int]:
    """Return the optimizer steps of one job at all sites, and the points on the curves."""
    task = load_run_task(config)
    if arm.table.kind == "centralized":
        job = pooled_task(config, arm.table.protocol).pooled_job(config.num_sites)
        return _costs([pooled_course(config, arm.table.protocol, job)])
    sites = simulated_sites(config)
    if arm.table.kind == "one-site":
        return _costs([course_of(config, task.site_job(sites[0]))])
    return _costs([course_of(config, task.site_job(site)) for site in sites])


def _costs(courses: Sequence[Course]) -> tuple[int, int]:
    return sum(one.steps for one in courses), sum(len(list(one.marks())) for one in courses)


def _step_seconds(config: RunConfig, protocol: Protocol) -> float:
    """Measure the seconds of an optimizer step."""
    task = pooled_task(config, protocol)
    job = task.pooled_job(config.num_sites)
    model = job.model()
    with repeatable(config.threads_per_site, task.device):
        for steps in (WARM_UP, MEASURED):
            plan = _plan(config, steps)
            result = train(model, job, plan, task.settings, task.device, "measured")
    return result.seconds / result.num_steps


def _plan(config: RunConfig, steps: int) -> RoundPlan:
    return RoundPlan(
        round=1,
        local_steps=steps,
        lr_max=config.lr_max,
        lr_min=config.lr_max,
        shape="constant",
        seed=config.seed,
    )


def _evaluation_seconds(config: RunConfig) -> float:
    """Measure the seconds of an evaluation on all splits of the coordinator."""
    task = load_run_task(config)
    held = task.coordinator_job(config.num_sites)
    model = held.model()
    with repeatable(config.threads_per_site, task.device):
        started = time.monotonic()
        evaluated(task, held, model)
    return time.monotonic() - started
