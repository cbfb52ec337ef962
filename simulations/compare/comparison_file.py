"""Comparison files: the arms, their seeds, their data and how they are tuned."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mdc_flower.common.config_files import read_arm
from mdc_flower.common.config_model import Scalar
from mdc_flower.config import RunConfig
from simulations.compare.arm import Arm, load_arm
from strategies.common.errors import ConfigError

Grid = dict[str, Annotated[list[Scalar], Field(min_length=1)]]
"""Run-config keys with the values to try; every combination is a candidate."""

PER_JOB_KEYS = ("seed", "output-dir", "resume")
"""Run-config keys that the comparison sets for each job."""


def candidates_of(grid: Grid) -> list[dict[str, Scalar]]:
    """Return all combinations of a grid's values; the first key's value changes slowest."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


class _Table(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )


class Tuning(_Table):
    """The ``[tuning]`` table: how the keys of each arm are chosen on the validation split.

    Attributes
    ----------
    num_seeds, first_seed : int
        Seeds used to compare candidates; they must differ from the reported seeds.
    config : dict
        Run-config keys with which candidates are compared, in place of those of ``[config]``: fewer
        examples or a smaller budget, so that tuning costs less.
    grid : dict
        Candidates for every arm.
    arm_grid : dict
        Candidates for individual arms, by arm file name, in place of ``grid``; every arm must have
        the same number of candidates.
    """

    num_seeds: int = Field(default=1, ge=1)
    first_seed: int = Field(default=101, ge=0)
    config: dict[str, Scalar] = {}
    grid: Grid
    arm_grid: dict[str, Grid] = {}

    @property
    def seeds(self) -> list[int]:
        """Return the tuning seeds."""
        return list(range(self.first_seed, self.first_seed + self.num_seeds))

    def candidates(self, arm: str) -> list[dict[str, Scalar]]:
        """Return the candidates of an arm; the first key's value changes slowest."""
        return candidates_of(self.arm_grid.get(arm, self.grid))


class Comparison(_Table):
    """Content of a comparison file.

    Attributes
    ----------
    name : str
        Title of tables and pictures.
    arms : sequence of str
        Arms, by name or path; the first is the reference for differences.
    highlight : sequence of str
        File names of the arms that pictures highlight; all arms if empty.
    num_seeds, first_seed : int
        Every arm runs with the seeds ``first_seed`` to ``first_seed + num_seeds - 1``.
    config : dict
        Run-config keys that all arms share.
    arm_config : dict
        Run-config keys for individual arms, by arm file name.
    tuning : Tuning or None
        How the arms are tuned first; None for no tuning.
    """

    name: str
    arms: list[str] = Field(min_length=1)
    highlight: list[str] = []
    num_seeds: int = Field(default=3, ge=1)
    first_seed: int = Field(default=1, ge=0)
    config: dict[str, Any] = {}
    arm_config: dict[str, dict[str, Any]] = {}
    tuning: Tuning | None = None

    @property
    def seeds(self) -> list[int]:
        """Return the reported seeds."""
        return list(range(self.first_seed, self.first_seed + self.num_seeds))

    def candidates(self, arm: str) -> list[dict[str, Scalar]]:
        """Return the candidates of an arm; without tuning, a single one that sets no keys."""
        return self.tuning.candidates(arm) if self.tuning else [{}]

    @property
    def in_tuning(self) -> "Comparison":
        """Return the comparison with the config with which candidates are compared."""
        own = self.tuning.config if self.tuning else {}
        return self.model_copy(update={"config": {**self.config, **own}})


def read_comparison(
    path: Path, only: Sequence[str] = (), num_seeds: int | None = None
) -> tuple[Comparison, list[Arm]]:
    """Read a comparison file and load its arms.

    Parameters
    ----------
    path
        The file.
    only
        File names of the arms to keep, in the order of the file; all if empty.
    num_seeds
        Number of seeds, from ``first-seed``; the file's number by default.

    Raises
    ------
    ConfigError
        If the file or an arm is invalid, two arms have the same file name, arms have different
        numbers of candidates, or ``only`` names an arm that is not in the file.
    """
    values, _ = read_arm(path)
    try:
        comparison = Comparison.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{path}, {'.'.join(str(part) for part in first['loc'])}"
        raise ConfigError(first["msg"], where=where, got=first["input"]) from None
    _check_names(comparison, path)
    _check_keys(comparison, path)
    if num_seeds is not None:
        comparison = comparison.model_copy(update={"num_seeds": num_seeds})
    check_seeds(comparison, f"{path}, ")
    if only:
        comparison = _with_only(comparison, only)
    arms = [
        load_arm(reference, path.parent, comparison.arm_config.get(Path(reference).stem, {}))
        for reference in comparison.arms
    ]
    _check_arms(arms, path)
    if comparison.tuning:
        _check_tuning(comparison.tuning, arms, path)
    return comparison, arms


def _with_only(comparison: Comparison, only: Sequence[str]) -> Comparison:
    by_name = {Path(arm).stem: arm for arm in comparison.arms}
    if unknown := [name for name in only if name not in by_name]:
        raise ConfigError(
            "no arm of the comparison has this name",
            where="--arm",
            got=unknown[0],
            expected="one of: " + ", ".join(by_name),
        )
    return comparison.model_copy(
        update={
            "arms": [arm for name, arm in by_name.items() if name in only],
            "highlight": [name for name in comparison.highlight if name in only],
        }
    )


def _check_names(comparison: Comparison, path: Path) -> None:
    """Raise ConfigError if a table names an arm that is not in the comparison."""
    named: Mapping[str, Sequence[str]] = {
        "highlight": comparison.highlight,
        "arm-config": list(comparison.arm_config),
        "tuning.arm-grid": list(comparison.tuning.arm_grid) if comparison.tuning else [],
    }
    known = {Path(arm).stem for arm in comparison.arms}
    for table, names in named.items():
        if unknown := sorted(set(names) - known):
            raise ConfigError(
                "no arm of the comparison has this name",
                where=f"{path}, {table}.{unknown[0]}",
                expected="one of: " + ", ".join(comparison.arms),
            )


def _check_keys(comparison: Comparison, path: Path) -> None:
    """Raise ConfigError for unknown run-config keys."""
    tables: dict[str, Mapping[str, Any]] = {"config": comparison.config}
    tables |= {f"arm-config.{arm}": keys for arm, keys in comparison.arm_config.items()}
    if tuning := comparison.tuning:
        tables |= {"tuning.config": tuning.config, "tuning.grid": tuning.grid}
        tables |= {f"tuning.arm-grid.{arm}": grid for arm, grid in tuning.arm_grid.items()}
    for table, keys in tables.items():
        RunConfig.check_keys(keys, f"{path}, [{table}]")


def with_settings(
    comparison: Comparison, arms: Sequence[Arm], settings: Mapping[str, Any]
) -> Comparison:
    """Return the comparison with these run-config keys set for every arm.

    Raises
    ------
    ConfigError
        If a key is unknown, the comparison sets it for each job, or an arm or one of its
        candidates sets a different value, which would take precedence.
    """
    RunConfig.check_keys(settings, "--set")
    for key, value in settings.items():
        if key in PER_JOB_KEYS:
            raise ConfigError(
                "the comparison sets this key for each job", where=f"--set, {key}", got=value
            )
        for arm in arms:
            for candidate in comparison.candidates(arm.key):
                own = {**arm.values, **candidate}
                if own.get(key, value) != value:
                    raise ConfigError(
                        "an arm sets this key itself, which takes precedence",
                        where=f"--set, {key}",
                        got=value,
                        expected=f"{own[key]!r}, the value of the arm {arm.key}",
                        hint="Change it in the comparison file or in the arm file",
                    )
    return comparison.model_copy(update={"config": {**comparison.config, **settings}})


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
                "the arm named by rounds-of is not in the comparison, or has no rounds of its own",
                where=f"{path}, {arm.key}, rounds-of",
                got=arm.table.rounds_of,
                expected="one of: " + ", ".join(with_rounds),
            )


def check_seeds(comparison: Comparison, where: str = "") -> None:
    """Raise ConfigError if a seed is used both for tuning and for reported results.

    Parameters
    ----------
    where
        Prefix of the location in the error message.
    """
    tuned = comparison.tuning.seeds if comparison.tuning else []
    if shared := sorted(set(tuned) & set(comparison.seeds)):
        raise ConfigError(
            "tuning seeds must not be reported seeds",
            where=f"{where}tuning, first-seed",
            got=shared[0],
            expected=f"none of {comparison.seeds[0]} to {comparison.seeds[-1]}",
        )


def _check_tuning(tuning: Tuning, arms: Sequence[Arm], path: Path) -> None:
    expected = _num_distinct(candidates_of(tuning.grid))
    for arm in arms:
        if (count := _num_distinct(tuning.candidates(arm.key))) != expected:
            raise ConfigError(
                "every arm must have the same number of different candidates",
                where=f"{path}, tuning.arm-grid.{arm.key}",
                got=count,
                expected=str(expected),
            )


def _num_distinct(candidates: Sequence[Mapping[str, Scalar]]) -> int:
    return len({tuple(sorted(values.items())) for values in candidates})
