"""The folder of one job: what it is of, written before it starts, and its result.

A result is taken again only for the very same job: the kind of the arm, every key of the config
that says what is computed, and the data themselves. So it is with a run that was interrupted.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mdc_flower.config import RunConfig, spelled_as
from simulations.compare.data_digest import data_digest
from simulations.compare.provenance import hardware, versions
from simulations.results.outcome import Outcome, Point
from strategies.common.errors import ConfigError
from strategies.common.files import write_atomically
from strategies.storage.run_directory import holds_run

JOB, RESULT = "job.json", "result.json"

PLACES = ("output-dir", "data-root")
"""Keys of the run config that say where things are: another place is not another config."""

REMOVE = "Name another --output, or remove the old results"


@dataclass(frozen=True)
class Finished:
    """What a job gave, and what it was computed with."""

    outcome: Outcome
    hardware: str
    versions: Mapping[str, str]
    was_there: bool = False
    """Whether it was computed before, and only read."""


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the keys that differ from machine to machine."""
    return {key: value for key, value in config.items() if key not in PLACES}


def description(kind: str, config: RunConfig) -> dict[str, Any]:
    """Return what a job is of: two jobs with equal descriptions give equal outcomes."""
    return {"kind": kind, "config": config.to_flower(), "data": data_digest(config)}


def claim(folder: Path, job: Mapping[str, Any]) -> None:
    """Take a folder for the job of this description.

    Raises
    ------
    ConfigError
        If the folder holds another job; it is left as it is.
    """
    for name in (RESULT, JOB):
        if (stored := _read(folder / name)) is not None:
            _check_same(stored, job, folder)
            return
    if holds_run(folder):
        raise _of_unknown_data(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JOB, json.dumps(job).encode())


def read_result(folder: Path) -> Finished | None:
    """Return the result in a folder that was claimed; None if there is none, or it is cut off."""
    stored = _read(folder / RESULT)
    if stored is None:
        return None
    points = [Point(**point) for point in stored["outcome"]["points"]]
    return Finished(Outcome(points), stored["hardware"], stored["versions"], was_there=True)


def write_result(folder: Path, job: Mapping[str, Any], outcome: Outcome) -> Finished:
    """Write what this process has computed, and return it."""
    finished = Finished(outcome, hardware(), versions())
    stored = {key: value for key, value in asdict(finished).items() if key != "was_there"}
    write_atomically(folder / RESULT, json.dumps({**job, **stored}).encode())
    return finished


def _read(path: Path) -> dict[str, Any] | None:
    """Return what is in a file; None if there is none, or a disk that was full cut it off."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return stored


def _check_same(stored: Mapping[str, Any], job: Mapping[str, Any], folder: Path) -> None:
    now = without_places(job["config"])
    before = spelled_as(without_places(stored["config"]), now)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise ConfigError(
                "the folder holds a result of another config",
                where=f"{folder}, {key}",
                got=before.get(key),
                expected=repr(now.get(key)),
                hint=REMOVE,
            )
    if not {"kind", "data"} <= set(stored):
        raise _of_unknown_data(folder)
    for key, what in (("kind", "another kind of arm"), ("data", "other data")):
        if stored[key] != job[key]:
            raise ConfigError(
                f"the folder holds a result of {what}",
                where=str(folder),
                got=stored[key],
                expected=job[key],
                hint=REMOVE,
            )


def _of_unknown_data(folder: Path) -> ConfigError:
    return ConfigError(
        "the folder holds a result of an earlier version, which does not say of which data it is",
        where=str(folder),
        hint=REMOVE,
    )
