"""Results of several comparisons, as they lie beside each other in one folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from simulations.results.result_files import COMPARISON, Results, read_results
from strategies.common.errors import DataError

SPLITS = "splits"
"""Folder with the comparisons of one data set cut in several ways."""

KINDS = ("iid", "size-skew", "shards", "dirichlet", "natural-id")
"""Kinds of partition, from the even to the uneven."""


def read_comparisons(folder: Path, names: Iterable[str]) -> list[Results]:
    """Return the results in these folders below ``folder``.

    Raises
    ------
    DataError
        See `read_results`.
    """
    return [read_results(folder / name) for name in names]


def read_splits(folder: Path) -> list[Results]:
    """Return the results in all folders below ``folder / "splits"``, the even splits first.

    Raises
    ------
    DataError
        If there are none, or one is not understood.
    """
    splits = folder / SPLITS
    found = sorted(path.parent for path in splits.glob(f"*/{COMPARISON}"))
    if not found:
        raise DataError(
            "there are no results of splits",
            where=str(splits),
            hint="Make them, for each NAME of sites-2, sites-5, sites-10, sites-20, size-skew, "
            "dirichlet-1.0, dirichlet-0.3, dirichlet-0.1 and speakers: "
            f"mdc compare simulations/comparisons/NAME.toml --output {splits}/NAME",
        )
    return sorted((read_results(path) for path in found), key=_unevenness)


def only(comparisons: Iterable[Results], arms: Sequence[str]) -> list[Results]:
    """Return the same results, of these arms alone, by key; the first arm must be among them.

    Raises
    ------
    DataError
        If the first arm, to which differences refer, is not among them.
    """
    return [_only(results, arms) for results in comparisons]


def _only(results: Results, arms: Sequence[str]) -> Results:
    facts = results.facts
    if (first := facts.arms[0].key) not in arms:
        raise DataError(
            "differences would refer to another arm",
            where=facts.name,
            got=", ".join(arms),
            expected=f"{first} among them",
        )
    kept = [arm for arm in facts.arms if arm.key in arms]
    return Results(
        facts=facts.model_copy(update={"arms": kept, "highlight": []}),
        outcomes={arm.key: results.outcomes[arm.key] for arm in kept},
    )


def split_name(results: Results) -> tuple[str, str]:
    """Return what is split, and how, from a title such as ``letters, 5 sites, IID``."""
    parts = results.facts.name.split(", ")
    return ", ".join(parts[:-2]), ", ".join(parts[-2:])


def _unevenness(results: Results) -> tuple[str, int, int, float]:
    """Return what splits are ordered by: data set, kind, sites, and the larger alpha first."""
    config = results.facts.arms[0].config
    return (
        str(config["dataset"]),
        KINDS.index(str(config["partition"])),
        results.facts.num_sites,
        -float(config["partition-alpha"]),
    )
