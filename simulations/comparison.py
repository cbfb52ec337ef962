"""Run arms at equal budgets: the same passes over the data, partition, initial model, seeds."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mdc_flower.config import RunConfig
from mdc_flower.config_files import read_arm
from mdc_flower.engines import run_in_process
from mdc_flower.report import work_done
from mdc_flower.task import load_task
from simulations.arm import Arm, load_arm
from simulations.baselines import Outcome, Point, train_ensemble, train_without_exchange
from strategies.errors import ConfigError
from strategies.journal.files import write_atomically
from strategies.journal.run_directory import CONFIG, SUMMARY, holds_run, read_history

RESULT = "result.json"


class Comparison(BaseModel):
    """A comparison file.

    Attributes
    ----------
    name : str
        Title of table and plot.
    arms : sequence of str
        Arms, by name or path; the first is what differences refer to.
    num_seeds, first_seed : int
        Seeds ``first_seed`` to ``first_seed + num_seeds - 1``, each for every arm.
    config : dict
        Keys of the run config that all arms share.
    arm_config : dict
        Keys of the run config for single arms, by the arm's file name.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )

    name: str
    arms: list[str] = Field(min_length=1)
    num_seeds: int = Field(default=3, ge=1)
    first_seed: int = Field(default=1, ge=0)
    config: dict[str, Any] = {}
    arm_config: dict[str, dict[str, Any]] = {}

    @property
    def seeds(self) -> list[int]:
        """Return the seeds."""
        return list(range(self.first_seed, self.first_seed + self.num_seeds))


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    arm: Arm
    seed: int
    config: RunConfig
    folder: Path


def read_comparison(path: Path) -> tuple[Comparison, list[Arm]]:
    """Return a comparison file and its arms.

    Raises
    ------
    ConfigError
        If the file or an arm is not understood, or two arms have the same file name.
    """
    values, _ = read_arm(path)
    try:
        comparison = Comparison.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{path}, {'.'.join(str(part) for part in first['loc'])}"
        raise ConfigError(first["msg"], where=where, got=first["input"]) from None
    if unknown := set(comparison.arm_config) - {Path(arm).stem for arm in comparison.arms}:
        raise ConfigError(
            "no arm of the comparison has this name",
            where=f"{path}, arm-config.{sorted(unknown)[0]}",
            expected="one of: " + ", ".join(comparison.arms),
        )
    arms = [
        load_arm(reference, path.parent, comparison.arm_config.get(Path(reference).stem, {}))
        for reference in comparison.arms
    ]
    _check_arms(arms, path)
    return comparison, arms


def _check_arms(arms: Sequence[Arm], path: Path) -> None:
    keys = [arm.key for arm in arms]
    with_rounds = [
        arm.key for arm in arms if arm.table.kind == "federated" and not arm.table.rounds_of
    ]
    for arm in arms:
        if keys.count(arm.key) > 1:
            raise ConfigError("two arms have the same file name", where=str(path), got=arm.key)
        if arm.table.rounds_of and arm.table.rounds_of not in with_rounds:
            raise ConfigError(
                "the arm whose rounds it takes is not in the comparison, or has none of its own",
                where=f"{path}, {arm.key}, rounds-of",
                got=arm.table.rounds_of,
                expected="one of: " + ", ".join(with_rounds),
            )


def run_comparison(
    comparison: Comparison,
    arms: Sequence[Arm],
    output: Path,
    workers: int | None = None,
    on_done: Callable[[Job, int, int], None] = lambda job, done, total: None,
) -> dict[str, dict[int, Outcome]]:
    """Run every arm with every seed, in parallel processes, and return all outcomes.

    A result that is there already, of the very same config, is not computed again.

    Parameters
    ----------
    output
        Absolute folder; each job gets ``ARM/seed-N`` below it.
    workers
        Processes; one a core by default.
    on_done
        Called with each finished job, the number finished, and the number of all.

    Returns
    -------
    dict
        Outcomes by arm (its key) and seed.
    """
    # Data sets are read, and models built, once here: an error is found before anything is
    # trained, and workers find decoded images in the cache.
    for arm in arms:
        config = arm.config(comparison.config, seed=comparison.first_seed, **_two_rounds(arm))
        _check_budget(arm, config)
        load_task(config).new_model()
    total, done = len(arms) * comparison.num_seeds, 0
    outcomes: dict[str, dict[int, Outcome]] = {arm.key: {} for arm in arms}
    count = workers or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        for independent in (True, False):
            phase = [arm for arm in arms if independent == (not arm.table.rounds_of)]
            jobs = list(_jobs(comparison, phase, output, outcomes))
            for job, outcome in _finished(pool, jobs):
                outcomes[job.arm.key][job.seed] = outcome
                done += 1
                on_done(job, done, total)
    return outcomes


def _check_budget(arm: Arm, config: RunConfig) -> None:
    """Refuse what would leave an arm without sites to wait for, or without an equal budget."""
    for key, value in (("num-sites", config.num_sites), ("epoch-budget", config.epoch_budget)):
        if value == 0:
            raise ConfigError(
                "a comparison needs a number",
                where=f"{arm.key}, {key}",
                got=0,
                expected="1 or more",
            )


def _two_rounds(arm: Arm) -> dict[str, int]:
    """Return a stand-in for the rounds that an arm takes from another: only to check it."""
    return {"num_rounds": 2} if arm.table.rounds_of else {}


def _jobs(
    comparison: Comparison,
    arms: Iterable[Arm],
    output: Path,
    outcomes: Mapping[str, Mapping[int, Outcome]],
) -> Iterator[Job]:
    for seed in comparison.seeds:
        for arm in arms:
            folder = output / arm.key / f"seed-{seed}"
            more: dict[str, Any] = {"seed": seed, "output_dir": str(folder)}
            if arm.table.rounds_of:
                more["num_rounds"] = outcomes[arm.table.rounds_of][seed].rounds
            yield Job(arm, seed, arm.config(comparison.config, **more), folder)


def _finished(pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
    running: dict[Future[Outcome], Job] = {pool.submit(run_job, job): job for job in jobs}
    try:
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        for future in running:
            future.cancel()


def run_job(job: Job) -> Outcome:
    """Return a job's outcome, from its folder if it was computed before."""
    known = _read_result(job)
    if known is not None:
        return known
    match job.arm.table.kind:
        case "federated":
            outcome = _run_federated(job)
        case "ensemble":
            outcome = train_ensemble(job.config)
        case kind:
            outcome = train_without_exchange(job.config, kind)
    job.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"config": job.config.to_flower(), "outcome": asdict(outcome)})
    write_atomically(job.folder / RESULT, text.encode())
    return outcome


def _read_result(job: Job) -> Outcome | None:
    path = job.folder / RESULT
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    _check_same(stored["config"], job)
    outcome = stored["outcome"]
    return Outcome(**{**outcome, "points": [Point(**point) for point in outcome["points"]]})


def _check_same(config: Mapping[str, Any], job: Job) -> None:
    if config != job.config.to_flower():
        raise ConfigError(
            "the folder holds a result of another config",
            where=str(job.folder),
            hint="Name another --output, or remove the old results",
        )


def _run_federated(job: Job) -> Outcome:
    # A run that an interrupted comparison left goes on from its checkpoint.
    if holds_run(job.folder):
        _check_same(read_arm(job.folder / CONFIG)[0], job)
    run_in_process(job.config.model_copy(update={"resume": True}), job.config.num_sites)
    history = read_history(job.folder)
    summary = json.loads((job.folder / SUMMARY).read_text())
    points = [
        Point(
            line["round"],
            epochs,
            line["evaluation"]["validation-accuracy"],
            line["evaluation"]["test-accuracy"],
        )
        for line, epochs in zip(history, work_done(history), strict=True)
    ]
    exchanged = summary["sent-bytes"] + summary["received-bytes"]
    return Outcome(points, len(history), exchanged, summary["seconds"])
