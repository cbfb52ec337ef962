"""Jobs: one job runs one arm with one seed, or reads its stored result."""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mdc_flower import server_app
from mdc_flower.config import RunConfig
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.reports.series import work, work_done
from simulations.compare.arm import Arm
from simulations.compare.baselines import train_ensemble, train_without_exchange
from simulations.compare.flower_fedavg import train_with_flowers_fedavg
from simulations.compare.job_files import Finished, claim, description, read_result, write_result
from simulations.compare.workers import IF_DEAD
from simulations.results.outcome import SPLITS, Outcome, Point
from strategies.common.errors import DivergedError, EngineError, QuorumError
from strategies.exchange.causes import Cause
from strategies.exchange.messages import NUM_EXAMPLES
from strategies.exchange.metrics import LOSS, NUM_STEPS
from strategies.pending_evaluation import Inline
from strategies.storage.run_directory import SUMMARY, read_history

log = logging.getLogger(__name__)

without_picture = ServerApp()


@without_picture.main()
def _main(grid: Grid, context: Context) -> None:
    """Run a job without its own picture, which would take seconds; the comparison is drawn."""
    server_app.lead(grid, context, Inline(), with_picture=False)


@dataclass(frozen=True)
class Job:
    """One arm with one seed, in its own folder.

    For a tuning job, ``trying`` lists the values it tries; its divergence is not an error.
    """

    arm: Arm
    seed: int
    config: RunConfig
    folder: Path
    trying: str = ""

    @property
    def label(self) -> str:
        """Return the name of the job for messages."""
        return f"{self.arm.name}, seed {self.seed}{self.trying and f', trying {self.trying}'}"


def finished_jobs(pool: Executor, jobs: Sequence[Job]) -> Iterator[tuple[Job, Finished]]:
    """Run jobs in the pool's processes, and yield each when it finishes.

    A failed job does not stop the others. Its error is logged at once, and raised when all jobs
    have ended.

    Raises
    ------
    Exception
        The error of the first job that failed. Notes give its label, and the labels and errors of
        the other failed jobs.
    EngineError
        If a process of the pool died. The message names the unfinished jobs.
    """
    left = {job.folder: job for job in jobs}
    running: dict[Future[Finished], Job] = {}
    failed: list[tuple[Job, Exception]] = []
    try:
        for job in jobs:
            running[pool.submit(run_job, job)] = job
        for future in as_completed(running):
            job = running[future]
            try:
                finished = future.result()
            except BrokenProcessPool:
                raise
            except Exception as error:
                log.error("%s failed: %s", job.label, error)
                failed.append((job, error))
                continue
            del left[job.folder]
            yield job, finished
    except BrokenProcessPool:
        raise EngineError(
            "a worker process died; unfinished jobs: "
            + "; ".join(job.label for job in left.values()),
            hint=IF_DEAD,
        ) from None
    finally:
        for future in running:
            future.cancel()
    if failed:
        (job, first), *others = failed
        first.add_note(f"in the job {job.label}")
        for job, other in others:
            first.add_note(f"the job {job.label} failed, too: {other}")
        raise first


def run_job(job: Job) -> Finished:
    """Run a job, or read its result if it was computed before.

    Returns
    -------
    Finished
        The outcome has no points if a tuning job diverged: its updates or its validation loss are
        not finite.

    Raises
    ------
    ConfigError
        If the folder holds a result or a run with a different config, kind of arm or data.
    QuorumError
        If a site did not take part in a round; a comparison needs all sites in every round.
    """
    about = description(job.arm.table.trains, job.config)
    claim(job.folder, about)
    return read_result(job.folder) or write_result(job.folder, about, _outcome(job))


def _outcome(job: Job) -> Outcome:
    try:
        outcome = _run(job)
    except (QuorumError, DivergedError) as error:
        if job.trying and _diverged(error):
            return Outcome([])
        raise
    if job.trying and not math.isfinite(outcome.final.validation[LOSS.name]):
        return Outcome([])
    return outcome


def _diverged(error: QuorumError | DivergedError) -> bool:
    """Return whether non-finite values are the only reason why sites are missing."""
    return isinstance(error, DivergedError) or set(error.causes.values()) == {Cause.NOT_FINITE}


def _run(job: Job) -> Outcome:
    match job.arm.table.kind:
        case "federated":
            return _run_federated(job)
        case "flower-fedavg":
            return train_with_flowers_fedavg(job.config)
        case "ensemble":
            return train_ensemble(job.config)
        case kind:
            return train_without_exchange(job.config, kind, job.arm.table.protocol)


def _run_federated(job: Job) -> Outcome:
    # Resume a run that an interrupted comparison left. Require all sites in every round: the arms
    # are compared on equal data.
    more = {"resume": True, "min_sites": job.config.num_sites}
    run_in_process(job.config.model_copy(update=more), job.config.num_sites, without_picture)
    history = read_history(job.folder)
    summary = json.loads((job.folder / SUMMARY).read_text())
    points = _curve(history, job.config.batch_size)
    return Outcome([*points[:-1], _at_the_end(points[-1], summary)])


def _curve(history: Sequence[Mapping[str, Any]], batch_size: int) -> list[Point]:
    """Return one point per round of a run."""
    lines = [{**line, **_trained(line, batch_size)} for line in history]
    sums = {
        key: list(accumulate(line[key] for line in lines))
        for key in ("sent_bytes", "received_bytes", "seconds", "steps", "examples")
    }
    return [
        Point(
            round=line["round"],
            exchanges=line["round"],
            epochs=epochs,
            local_epochs=work(line),
            lr_max=line["plan"]["lr_max"],
            relative_change=line["relative_change"],
            **_by_split(line["evaluation"]),
            **{key: values[index] for key, values in sums.items()},
        )
        for index, (line, epochs) in enumerate(zip(history, work_done(history), strict=True))
    ]


def _trained(line: Mapping[str, Any], batch_size: int) -> dict[str, int]:
    """Return the steps of the site that had most in a round, and the examples of all sites."""
    sites = line["participants"].values()
    steps = [int(site[NUM_STEPS]) for site in sites]
    if line["plan"]["local_steps"]:
        examples = batch_size * sum(steps)
    else:
        examples = round(work(line) * sum(int(site[NUM_EXAMPLES]) for site in sites))
    return {"steps": max(steps), "examples": examples}


def _by_split(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of an evaluation that are numbers, by split and name.

    A number that is not finite is null in a run's records, and NaN here.
    """
    return {
        split: {
            name.removeprefix(f"{split}-"): math.nan if value is None else float(value)
            for name, value in evaluation.items()
            if name.startswith(f"{split}-") and not isinstance(value, list)
        }
        for split in SPLITS
    }


def _at_the_end(last: Point, summary: Mapping[str, Any]) -> Point:
    """Return the last point, evaluated with the final model of the run.

    The final model differs from that of the last round if models of several rounds are averaged,
    or if BatchNorm statistics are recalibrated in an additional exchange.
    """
    averaged = summary.get("averaged", {})
    recalibrated = [part for part in (summary, averaged) if "recalibration" in part]
    return replace(
        last,
        exchanges=last.round + len(recalibrated),
        sent_bytes=summary["sent-bytes"],
        received_bytes=summary["received-bytes"],
        seconds=last.seconds + sum(part["recalibration"]["seconds"] for part in recalibrated),
        **_by_split(averaged or summary["final"]),
    )
