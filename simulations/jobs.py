"""One arm with one seed: run it, or read what it gave before; many of them, on all cores."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from mdc_flower.config import RunConfig
from mdc_flower.config_files import read_arm
from mdc_flower.engines import run_in_process
from mdc_flower.reports.series import work_done
from simulations.arm import Arm
from simulations.baselines import train_ensemble, train_without_exchange
from simulations.outcome import Outcome, Point
from strategies.errors import ConfigError, QuorumError
from strategies.journal.files import write_atomically
from strategies.journal.run_directory import CONFIG, SUMMARY, holds_run, read_history

RESULT = "result.json"

PLACES = ("output-dir", "data-root")
"""Keys of the run config that say where things are: another place is not another config."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed, in a folder of its own.

    ``trying`` says of a job that tunes which values it tries; such a job may diverge.
    """

    arm: Arm
    seed: int
    config: RunConfig
    folder: Path
    trying: str = ""

    @property
    def label(self) -> str:
        """Return what people call it."""
        return f"{self.arm.name}, seed {self.seed}{self.trying and f', trying {self.trying}'}"


def finished_jobs(pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
    """Run jobs in the pool's processes; yield each as it is done."""
    running: dict[Future[Outcome], Job] = {pool.submit(run_job, job): job for job in jobs}
    try:
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        for future in running:
            future.cancel()


def run_job(job: Job) -> Outcome:
    """Return a job's outcome, from its folder if it was computed before.

    Returns
    -------
    Outcome
        Without points for a job that tunes whose values cannot be used: its updates are not finite.

    Raises
    ------
    ConfigError
        If the folder holds a result, or a run, of another config.
    QuorumError
        If a job that is to be reported cannot finish.
    """
    if (job.folder / RESULT).is_file():
        return _read_result(job)
    try:
        outcome = _run(job)
    except QuorumError:
        if not job.trying:
            raise
        outcome = Outcome([])
    job.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"config": job.config.to_flower(), "outcome": asdict(outcome)})
    write_atomically(job.folder / RESULT, text.encode())
    return outcome


def _run(job: Job) -> Outcome:
    match job.arm.table.kind:
        case "federated":
            return _run_federated(job)
        case "ensemble":
            return train_ensemble(job.config)
        case kind:
            return train_without_exchange(job.config, kind)


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the keys that differ from machine to machine."""
    return {key: value for key, value in config.items() if key not in PLACES}


def _read_result(job: Job) -> Outcome:
    stored = json.loads((job.folder / RESULT).read_text())
    _check_same(stored["config"], job)
    return Outcome([Point(**point) for point in stored["outcome"]["points"]])


def _check_same(config: Mapping[str, Any], job: Job) -> None:
    if without_places(config) != without_places(job.config.to_flower()):
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
    points = _curve(history)
    return Outcome([*points[:-1], _at_the_end(points[-1], summary)])


def _curve(history: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the curve of a run's rounds."""
    sums = {
        key: list(accumulate(line[key] for line in history))
        for key in ("sent_bytes", "received_bytes", "seconds")
    }
    return [
        Point(
            round=line["round"],
            exchanges=line["round"],
            epochs=epochs,
            local_epochs=line["plan"]["local_epochs"],
            lr_max=line["plan"]["lr_max"],
            relative_change=line["relative_change"],
            **_metrics(line["evaluation"]),
            **{key: values[index] for key, values in sums.items()},
        )
        for index, (line, epochs) in enumerate(zip(history, work_done(history), strict=True))
    ]


def _metrics(evaluation: Mapping[str, float]) -> dict[str, Any]:
    return {
        "validation": evaluation["validation-accuracy"],
        "validation_loss": evaluation["validation-loss"],
        "test": evaluation["test-accuracy"],
        "test_loss": evaluation["test-loss"],
    }


def _at_the_end(last: Point, summary: Mapping[str, Any]) -> Point:
    """Return the last point as it is when the run is over.

    The model that the run is there to give is another than that of the last round, where models
    of several rounds are averaged, or BatchNorm's statistics are taken anew by an exchange more.
    """
    averaged = summary.get("averaged", {})
    recalibrated = [part for part in (summary, averaged) if "recalibration" in part]
    return replace(
        last,
        exchanges=last.round + len(recalibrated),
        sent_bytes=summary["sent-bytes"],
        received_bytes=summary["received-bytes"],
        seconds=last.seconds + sum(part["recalibration"]["seconds"] for part in recalibrated),
        **_metrics(averaged or summary["final"]),
    )
