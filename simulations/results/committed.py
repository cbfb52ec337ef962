"""Results of several comparisons, stored in subfolders of one folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from simulations.results.result_files import COMPARISON, Results, read_results
from strategies.common.errors import DataError

SPLITS = "splits"
"""Subfolder with comparisons of the same data under different partitions."""

KINDS = ("iid", "size-skew", "shards", "dirichlet", "natural-id")
"""Kinds of partition, from even to uneven."""


def read_comparisons(folder: Path, names: Iterable[str]) -> list[Results]:
    """Read the results in these subfolders of ``folder``.

    Raises
    ------
    DataError
        See `read_results`.
    """
    return [read_results(folder / name) for name in names]


def read_splits(folder: Path) -> list[Results]:
    """Read the results in all subfolders of ``folder / "splits"``, even splits first.

    Raises
    ------
    DataError
        If there are no results, or a file is invalid.
    """
    splits = folder / SPLITS
    found = sorted(path.parent for path in splits.glob(f"*/{COMPARISON}"))
    if not found:
        raise DataError(
            "no results of splits found",
            where=str(splits),
            hint="Create them: for each NAME of sites-2, sites-5, sites-10, sites-20, size-skew, "
            "dirichlet-1.0, dirichlet-0.3, dirichlet-0.1 and speakers, run "
            f"mdc compare simulations/comparisons/NAME.toml --output {splits}/NAME",
        )
    return sorted((read_results(path) for path in found), key=_unevenness)


def only(comparisons: Iterable[Results], arms: Sequence[str]) -> list[Results]:
    """Return the results of only these arms, given by key.

    Raises
    ------
    DataError
        If the first arm of a comparison, the reference for differences, is not included.
    """
    return [_only(results, arms) for results in comparisons]


def _only(results: Results, arms: Sequence[str]) -> Results:
    facts = results.facts
    if (first := facts.arms[0].key) not in arms:
        raise DataError(
            "the selected arms do not include the reference for differences",
            where=facts.name,
            got=", ".join(arms),
            expected=f"a list that includes {first}",
        )
    kept = [arm for arm in facts.arms if arm.key in arms]
    return Results(
        facts=facts.model_copy(update={"arms": kept, "highlight": []}),
        outcomes={arm.key: results.outcomes[arm.key] for arm in kept},
    )


def split_name(results: Results) -> tuple[str, str]:
    """Split a title such as ``letters, 5 sites, IID`` into data (``letters``) and partition."""
    parts = results.facts.name.split(", ")
    return ", ".join(parts[:-2]), ", ".join(parts[-2:])


def _unevenness(results: Results) -> tuple[str, int, int, float]:
    """Return the sort key of a split: data set, kind, number of sites, descending alpha."""
    config = results.facts.arms[0].config
    return (
        str(config["dataset"]),
        KINDS.index(str(config["partition"])),
        results.facts.num_sites,
        -float(config["partition-alpha"]),
    )
