"""Run arms with the same budget, partition, initial model and seeds."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mdc_flower.common.config_model import Scalar
from mdc_flower.config import RunConfig
from simulations.compare.arm import Arm
from simulations.compare.checks import check
from simulations.compare.comparison_file import Comparison
from simulations.compare.equal_budgets import configs_of, placeholder_rounds
from simulations.compare.job_files import Finished, job_folder, portable, without_locations
from simulations.compare.jobs import Job, finished_jobs
from simulations.compare.per_step import per_step_bytes
from simulations.compare.provenance import joined, joined_versions, provenance
from simulations.compare.tuning import TUNING_KEYS, ArmTuning
from simulations.compare.workers import VISIBLE_GPUS, worker_pool
from simulations.results.outcome import Outcome
from simulations.results.result_files import ArmFacts, Candidate, Facts, Results, Tuned
from strategies.exchange.metrics import Metric, SiteMetrics, described

Outcomes = Mapping[str, Mapping[int, Outcome]]
"""Outcomes by arm key and seed."""

OnDone = Callable[[Job, Sequence[Finished], int], None]
"""Callback for each finished job, with the job, all finished jobs and the number of jobs."""


@dataclass(frozen=True)
class Compared:
    """Outcomes of a comparison.

    Attributes
    ----------
    outcomes : dict
        Outcomes by arm key and seed.
    tuning : dict
        Tuning of each arm by arm key; empty without tuning.
    seconds : float
        Total time of all jobs including tuning, as if run on one core.
    hardware, versions
        All distinct hardware and versions that jobs were computed with, in this call or earlier.
    metrics : sequence of Metric
        The metrics of the arms' training job.
    """

    outcomes: Outcomes
    tuning: Mapping[str, ArmTuning]
    seconds: float
    hardware: str
    versions: Mapping[str, str]
    metrics: Sequence[Metric]


def run_comparison(
    comparison: Comparison,
    arms: Sequence[Arm],
    output: Path,
    workers: int | None = None,
    on_done: OnDone = lambda job, finished, total: None,
    split: str = "test",
    on_checked: Callable[[Executor], None] = lambda pool: None,
) -> Compared:
    """Tune every arm, and run it with every seed, in parallel processes.

    Stored results of the same jobs are reused.

    Parameters
    ----------
    output
        Absolute path of the output folder; see `simulations.compare.job_files.job_folder`.
    workers
        Number of processes; one per core by default. Several GPUs are assigned to them in turn.
    on_done
        Called after every finished job.
    split
        The split that will be reported; it must have examples.
    on_checked
        Called with the pool of processes when the comparison has been checked, before any
        training.

    Raises
    ------
    Exception
        See `check` and `simulations.compare.jobs.finished_jobs`. Finished results are kept.
    """
    task = check(comparison, arms, split)
    try:
        with worker_pool(workers, shared_gpus(configs_of(comparison, arms))) as pool:
            on_checked(pool)
            return _Runner(comparison, arms, task.metrics, output, pool, on_done).run()
    except BaseException as error:
        error.add_note(
            f"Finished jobs are kept. To continue, run the same command with --output {output}"
        )
        raise


def shared_gpus(configs: Mapping[str, Sequence[RunConfig]]) -> list[str]:
    """Return the GPUs that the jobs share; none if a config names another device."""
    named = {config.device for some in configs.values() for config in some}
    return visible_gpus() if named <= {"auto", "cuda"} else []


def visible_gpus() -> list[str]:
    """Return the GPUs visible to this process, in the notation of ``CUDA_VISIBLE_DEVICES``."""
    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE_GPUS)
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def results_of(
    comparison: Comparison, arms: Sequence[Arm], compared: Compared, split: str
) -> Results:
    """Return the outcomes of a comparison with the facts about it."""
    facts = Facts(
        name=comparison.name,
        split=split,
        **{**provenance(), "hardware": compared.hardware, "versions": compared.versions},
        seconds=round(compared.seconds, 1),
        seeds=comparison.seeds,
        num_sites=arms[0].config(comparison.config).num_sites,
        highlight=comparison.highlight,
        arms=[_arm_facts(comparison, arm, compared) for arm in arms],
        tuning={key: _tuned(tuning) for key, tuning in compared.tuning.items()} or None,
        tuning_config=comparison.tuning.config if comparison.tuning else {},
        metrics=described(compared.metrics),
    )
    return Results(facts=facts, outcomes=compared.outcomes)


def _arm_facts(comparison: Comparison, arm: Arm, compared: Compared) -> ArmFacts:
    values = compared.tuning[arm.key].values if arm.key in compared.tuning else {}
    config = arm.config(
        comparison.config, **{**values, **placeholder_rounds(arm), "seed": comparison.first_seed}
    )
    # Seeds, and the rounds of arms with rounds-of, differ between runs.
    left_out = {"seed", "resume", *placeholder_rounds(arm)}
    return ArmFacts(
        key=arm.key,
        name=arm.name,
        kind=arm.table.kind,
        protocol=arm.table.protocol,
        config={
            key: value
            for key, value in without_locations(portable(config)).items()
            if key not in left_out
        },
        per_step_bytes=per_step_bytes(config),
    )


def _tuned(tuning: ArmTuning) -> Tuned:
    candidates = [
        Candidate(values=dict(values), validation=dict(sorted(validation.items())))
        for values, validation in zip(tuning.candidates, tuning.validation, strict=True)
    ]
    return Tuned(candidates=candidates, chosen=tuning.chosen)


class _Runner:
    """Runs the jobs of one comparison in the order of their dependencies.

    Arms with ``rounds-of`` run after the arm they depend on, in tuning and in reported runs.
    Independent jobs run in parallel with them, so that no core is idle.
    """

    def __init__(
        self,
        comparison: Comparison,
        arms: Sequence[Arm],
        metrics: Sequence[Metric],
        output: Path,
        pool: Executor,
        on_done: OnDone,
    ) -> None:
        self.comparison = comparison
        self.metrics = metrics
        self.selection = SiteMetrics(metrics).selection
        self.independent = [arm for arm in arms if not arm.table.rounds_of]
        self.dependent = [arm for arm in arms if arm.table.rounds_of]
        self.output = output
        self.pool = pool
        self.on_done = on_done
        self.outcomes: dict[str, dict[int, Outcome]] = {arm.key: {} for arm in arms}
        self.tuning = {
            arm.key: ArmTuning(comparison.tuning.candidates(arm.key), metric=self.selection)
            for arm in arms
            if comparison.tuning
        }
        # Number of rounds of tuning jobs, by arm key, candidate and seed.
        self.rounds: dict[tuple[str, int, int], int] = {}
        num_tuning = sum(len(one.candidates) for one in self.tuning.values())
        tuning_seeds = len(comparison.tuning.seeds) if comparison.tuning else 0
        self.total = num_tuning * tuning_seeds + len(arms) * len(comparison.seeds)
        self.finished: list[Finished] = []
        self.seconds = 0.0

    def run(self) -> Compared:
        """Run all jobs."""
        self._run(self._tuning_jobs(self.independent))
        self._run([*self._tuning_jobs(self.dependent), *self._jobs(self.independent)])
        self._run(self._jobs(self.dependent))
        return Compared(
            self.outcomes,
            self.tuning,
            self.seconds,
            joined([one.hardware for one in self.finished]),
            joined_versions([one.versions for one in self.finished]),
            self.metrics,
        )

    def _run(self, jobs: Iterable["_PlannedJob"]) -> None:
        planned = {one.job.folder: one for one in jobs}
        for job, finished in finished_jobs(self.pool, [one.job for one in planned.values()]):
            outcome = finished.outcome
            candidate = planned[job.folder].candidate
            if candidate is None:
                self.outcomes[job.arm.key][job.seed] = outcome
            else:
                self._record_candidate(job, candidate, outcome)
            self.finished.append(finished)
            self.seconds += outcome.final.seconds if outcome.points else 0.0
            self.on_done(job, self.finished, self.total)

    def _record_candidate(self, job: Job, candidate: int, outcome: Outcome) -> None:
        by_seed = self.tuning[job.arm.key].validation[candidate]
        reached = outcome.final.validation.get(self.selection.name) if outcome.points else None
        by_seed[job.seed] = reached if reached is not None and math.isfinite(reached) else None
        if outcome.points:
            self.rounds[job.arm.key, candidate, job.seed] = outcome.final.round

    def _tuning_jobs(self, arms: Iterable[Arm]) -> Iterator["_PlannedJob"]:
        for arm in arms if self.comparison.tuning else ():
            for index, values in enumerate(self.tuning[arm.key].candidates):
                for seed in self.comparison.tuning.seeds if self.comparison.tuning else ():
                    folder = job_folder(self.output, arm.key, seed, index)
                    rounds = self._tuning_rounds(arm, seed)
                    yield self._job(arm, seed, folder, {**values, **TUNING_KEYS, **rounds}, index)

    def _jobs(self, arms: Iterable[Arm]) -> Iterator["_PlannedJob"]:
        for arm in arms:
            values = self.tuning[arm.key].values if arm.key in self.tuning else {}
            for seed in self.comparison.seeds:
                folder = job_folder(self.output, arm.key, seed)
                rounds = {}
                if source := arm.table.rounds_of:
                    rounds = {"num-rounds": self.outcomes[source][seed].final.round}
                yield self._job(arm, seed, folder, {**values, **rounds}, None)

    def _tuning_rounds(self, arm: Arm, seed: int) -> dict[str, Scalar]:
        if not (source := arm.table.rounds_of):
            return {}
        return {"num-rounds": self.rounds[source, self.tuning[source].chosen, seed]}

    def _job(
        self,
        arm: Arm,
        seed: int,
        folder: Path,
        values: Mapping[str, Any],
        candidate: int | None,
    ) -> "_PlannedJob":
        comparison = self.comparison if candidate is None else self.comparison.in_tuning
        config = arm.config(
            comparison.config, **{**values, "seed": seed, "output-dir": str(folder)}
        )
        trying = ""
        if candidate is not None:
            tried = self.tuning[arm.key].candidates[candidate]
            trying = ", ".join(f"{key} {value}" for key, value in tried.items())
        return _PlannedJob(Job(arm, seed, config, folder, trying), candidate)


@dataclass(frozen=True)
class _PlannedJob:
    """A job and the index of the candidate that it tries; None for a reported run."""

    job: Job
    candidate: int | None
