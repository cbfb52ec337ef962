"""The two result files of a comparison, the source of all tables and pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mdc_flower.common.config_model import Scalar
from mdc_flower.common.shown_metrics import ShownMetric, selecting, shown_metrics
from simulations.results.outcome import SPLITS, Outcome, Point
from strategies.common.errors import DataError
from strategies.common.files import write_atomically
from strategies.exchange.metrics import LOSS

COMPARISON = "comparison.json"
RESULTS = "results.jsonl"

EQUAL_PASSES, EQUAL_TIME = "equal-passes", "equal-time"
CENTRALIZED_STEPS = "centralized-steps"
"""Protocols of arms; files of earlier versions have only the first."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Candidate(_Record):
    """Tuning candidate: its keys, and the metric on the validation split at the end, by seed.

    The metric is the one that selects the best model. It is None if the run diverged.
    """

    values: dict[str, Scalar]
    validation: dict[int, float | None]


class Tuned(_Record):
    """The candidates of one arm, and the index of the chosen one."""

    candidates: list[Candidate] = Field(min_length=1)
    chosen: int = Field(ge=0)


class ArmFacts(_Record):
    """One arm as it was run.

    Attributes
    ----------
    key, name : str
        File name; name in tables.
    kind, protocol : str
        See `simulations.compare.arm.ArmTable`.
    config : dict
        All keys of the run config except file locations, with the tuned values.
    per_step_bytes : int
        Model bytes that all sites would exchange if they averaged after each optimizer step,
        with the same budget.
    """

    key: str
    name: str
    kind: str
    config: dict[str, Scalar]
    per_step_bytes: int
    protocol: str = EQUAL_PASSES

    @property
    def budget(self) -> int:
        """Return the work that the arm had to do, in passes over the data or in steps."""
        return int(self.config.get("step-budget") or self.config["epoch-budget"])

    @property
    def counts_steps(self) -> bool:
        """Return whether the budget counts optimizer steps and not passes over the data."""
        return bool(self.config.get("step-budget"))


class Facts(_Record):
    """Facts about a comparison: the content of ``comparison.json``.

    Attributes
    ----------
    name, split : str
        Title; split whose metrics are reported, ``test`` or ``validation``.
    command, date, hardware, versions
        Provenance of the results.
    seconds : float
        Total time of all runs including tuning, as if run on one core.
    seeds : list of int
        Seeds of every arm.
    num_sites : int
        Number of sites of the first arm.
    highlight : list of str
        Keys of the arms that pictures highlight; all arms if empty.
    arms : list of ArmFacts
        The arms; the first is the reference for differences.
    tuning : dict or None
        Tuning of each arm, by arm key.
    tuning_config : dict
        Run-config keys that were different when candidates were compared.
    metrics : list of dict or None
        The job's metrics, as `strategies.exchange.metrics.described` returns them. None in files
        of versions that compared only classifications.
    """

    name: str
    split: str
    command: str
    date: str
    hardware: str
    versions: dict[str, str]
    seconds: float
    seeds: list[int]
    num_sites: int
    highlight: list[str] = []
    arms: list[ArmFacts] = Field(min_length=1)
    tuning: dict[str, Tuned] | None = None
    tuning_config: dict[str, Scalar] = {}
    metrics: list[dict[str, str | bool]] | None = None

    @property
    def shown(self) -> Sequence[ShownMetric]:
        """Return the job's metrics as tables and figures show them."""
        return shown_metrics(self.metrics)

    @property
    def metric(self) -> ShownMetric:
        """Return the metric by which the arms are compared: the one that selects the best model."""
        return selecting(self.shown)


class Results(_Record):
    """The facts about a comparison, and its outcomes by arm key and seed."""

    facts: Facts
    outcomes: Mapping[str, Mapping[int, Outcome]]


def write_results(folder: Path, results: Results) -> None:
    """Write ``comparison.json`` and ``results.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = json.dumps(results.facts.model_dump(mode="json"), indent=1) + "\n"
    write_atomically(folder / COMPARISON, facts.encode())
    write_atomically(folder / RESULTS, json_lines(results).encode())


def json_lines(results: Results) -> str:
    """Return one JSON line per arm, seed and point."""
    return "".join(
        json.dumps({"arm": arm.key, "seed": seed, **_rounded(point)}) + "\n"
        for arm in results.facts.arms
        for seed, outcome in sorted(results.outcomes[arm.key].items())
        for point in outcome.points
    )


def read_results(folder: Path) -> Results:
    """Read the files that `write_results` wrote.

    Raises
    ------
    DataError
        If a file is missing or invalid, an arm lacks a result for a seed, or a result lacks the
        metric by which the arms are compared, or does not cover the budget of its arm.
    """
    try:
        facts = Facts.model_validate_json((folder / COMPARISON).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise DataError(
            f"the file cannot be read: {error}", where=str(folder / COMPARISON)
        ) from None
    outcomes = _read_lines(folder / RESULTS)
    for arm in facts.arms:
        if sorted(outcomes.get(arm.key, {})) != sorted(facts.seeds):
            raise DataError(
                "the arm does not have one result for each seed",
                where=f"{folder / RESULTS}, {arm.key}",
                got=sorted(outcomes.get(arm.key, {})),
                expected=str(sorted(facts.seeds)),
            )
        for seed, outcome in outcomes[arm.key].items():
            where = f"{folder / RESULTS}, {arm.key}, seed {seed}"
            _check_budget(arm, outcome, where)
            _check_metric(facts, outcome, where)
    return Results(facts=facts, outcomes=outcomes)


def _check_budget(arm: ArmFacts, outcome: Outcome, where: str) -> None:
    used = outcome.final.epochs
    # In equal time, the pooled data are trained on for a part of the budget.
    covered = used <= arm.budget if arm.protocol == EQUAL_TIME else used == arm.budget
    if not covered:
        raise DataError(
            "the last point does not cover the whole budget of the arm",
            where=where,
            got=f"{used} {'steps' if arm.counts_steps else 'epochs'}",
            expected=str(arm.budget),
        )


def _check_metric(facts: Facts, outcome: Outcome, where: str) -> None:
    for point in outcome.points:
        known = point.metrics(facts.split)
        if facts.metric.name not in known:
            raise DataError(
                f"a point lacks the metric {facts.metric.name!r} on the {facts.split} split",
                where=where,
                got=sorted(known),
            )


def _read_lines(path: Path) -> dict[str, dict[int, Outcome]]:
    points: dict[str, dict[int, list[Point]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path)) from None
    for number, line in enumerate(lines, 1):
        try:
            values: dict[str, Any] = json.loads(line)
            arm, seed = values.pop("arm"), values.pop("seed")
            points.setdefault(arm, {}).setdefault(seed, []).append(Point.read(values))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the line is not a point of a curve: {error}", where=f"{path}:{number}"
            ) from None
    return {
        arm: {seed: Outcome(curve) for seed, curve in by_seed.items()}
        for arm, by_seed in points.items()
    }


def _rounded(point: Point) -> dict[str, Any]:
    """Return a point for writing, with losses and times rounded to meaningful digits."""
    values = asdict(point)
    for split in SPLITS:
        values[split] = {name: _written(name, value) for name, value in values[split].items()}
    values["seconds"] = round(values["seconds"], 2)
    if values["relative_change"] is not None:
        values["relative_change"] = _significant(values["relative_change"], 4)
    return values


def _written(name: str, value: float) -> float | None:
    """Return a metric's value for JSON, which cannot represent a value that is not finite."""
    if not math.isfinite(value):
        return None
    return _significant(value, 6) if name == LOSS.name else value


def _significant(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def mean_validation(by_seed: Mapping[int, float | None]) -> float:
    """Return a candidate's mean over the seeds; NaN if it diverged with any."""
    return float(np.mean([math.nan if value is None else value for value in by_seed.values()]))
