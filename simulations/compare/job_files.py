"""Files of one job: its description, written before it starts, and its result.

A stored result is reused only for the same job: the same kind of arm, the same values of all
run-config keys except file locations, and the same data. The same holds for continuing an
interrupted run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mdc_flower.common.outer_step import spelled_as
from mdc_flower.config import RunConfig
from mdc_flower.jobs.initial_model import KEY as INITIAL_MODEL
from mdc_flower.jobs.initial_model import file_digest
from simulations.compare.data_digest import data_digest
from simulations.compare.provenance import hardware, versions
from simulations.results.outcome import Outcome, Point
from strategies.common.errors import ConfigError
from strategies.common.files import write_atomically
from strategies.storage.run_directory import holds_run

JOB, RESULT = "job.json", "result.json"

LOCATION_KEYS = ("output-dir", "data-root")
"""Run-config keys for file locations; configs that differ only in these count as equal."""

REMOVE = "Choose another --output, or remove the old results"


@dataclass(frozen=True)
class Finished:
    """The outcome of a job, and the hardware and versions it was computed with."""

    outcome: Outcome
    hardware: str
    versions: Mapping[str, str]
    reused: bool = False
    """Whether the result was read from disk instead of computed."""


def job_folder(output: Path, arm: str, seed: int, candidate: int | None = None) -> Path:
    """Return the folder of a job in that of its comparison; ``candidate`` is for a tuning job."""
    if candidate is None:
        return output / arm / f"seed-{seed}"
    return output / "tuning" / arm / f"candidate-{candidate}" / f"seed-{seed}"


def without_locations(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the `LOCATION_KEYS`."""
    return {key: value for key, value in config.items() if key not in LOCATION_KEYS}


def portable(config: RunConfig) -> dict[str, Any]:
    """Return a config that has the digest of its initial model in place of the path."""
    values = config.to_flower()
    del values[INITIAL_MODEL]
    digest = file_digest(config)
    return {**values, **({INITIAL_MODEL: f"SHA-256 {digest}"} if digest else {})}


def description(kind: str, config: RunConfig) -> dict[str, Any]:
    """Return the description of a job; jobs with equal descriptions have equal outcomes."""
    return {"kind": kind, "config": portable(config), "data": data_digest(config)}


def claim(folder: Path, job: Mapping[str, Any]) -> None:
    """Reserve a folder for the job with this description.

    Raises
    ------
    ConfigError
        If the folder holds another job. The folder is not changed.
    """
    for name in (RESULT, JOB):
        if (stored := _read(folder / name)) is not None:
            _check_same(stored, job, folder)
            return
    if holds_run(folder):
        raise _unknown_data_error(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JOB, json.dumps(job).encode())


def read_result(folder: Path) -> Finished | None:
    """Return the result in a claimed folder; None if it is missing or truncated."""
    stored = _read(folder / RESULT)
    if stored is None:
        return None
    points = [Point.read(point) for point in stored["outcome"]["points"]]
    return Finished(Outcome(points), stored["hardware"], stored["versions"], reused=True)


def write_result(folder: Path, job: Mapping[str, Any], outcome: Outcome) -> Finished:
    """Write an outcome that this process computed, and return the finished job."""
    finished = Finished(outcome, hardware(), versions())
    stored = {key: value for key, value in asdict(finished).items() if key != "reused"}
    write_atomically(folder / RESULT, json.dumps({**job, **stored}).encode())
    return finished


def _read(path: Path) -> dict[str, Any] | None:
    """Return the JSON in a file; None if it is missing, or truncated by a full disk."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return stored


def _check_same(stored: Mapping[str, Any], job: Mapping[str, Any], folder: Path) -> None:
    now = without_locations(job["config"])
    before = spelled_as(without_locations(stored["config"]), now)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise ConfigError(
                "the folder holds a result of a different config",
                where=f"{folder}, {key}",
                got=before.get(key),
                expected=repr(now.get(key)),
                hint=REMOVE,
            )
    if not {"kind", "data"} <= set(stored):
        raise _unknown_data_error(folder)
    for key, what in (("kind", "a different kind of arm"), ("data", "different data")):
        if stored[key] != job[key]:
            raise ConfigError(
                f"the folder holds a result of {what}",
                where=str(folder),
                got=stored[key],
                expected=job[key],
                hint=REMOVE,
            )


def _unknown_data_error(folder: Path) -> ConfigError:
    return ConfigError(
        "the folder holds a result of an earlier version, which does not record its data",
        where=str(folder),
        hint=REMOVE,
    )
