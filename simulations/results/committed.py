"""Results of several comparisons, stored in subfolders of one folder, and what they share."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdc_flower.common.shown_metrics import ShownMetric
from mdc_flower.config import CLASSIFICATION_JOB
from simulations.results.result_files import COMPARISON, ArmFacts, Results, read_results
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


def read_all(folder: Path) -> list[Results]:
    """Read the results in a folder, or in all of its subfolders in the order of their names.

    Raises
    ------
    DataError
        If there are no results, or a file is invalid.
    """
    found = _folders(folder)
    if not found:
        raise DataError(
            "no results of comparisons found",
            where=str(folder),
            hint=f"Create them: mdc compare FILE.toml --output {folder}/NAME",
        )
    return [read_results(path) for path in found]


def _folders(folder: Path) -> list[Path]:
    """Return the folders with results: this one or, in their order, its subfolders."""
    if (folder / COMPARISON).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{COMPARISON}"))


def read_splits(folder: Path) -> list[Results]:
    """Read results of the same data under different partitions, even partitions first.

    The data with most partitions come first.

    They are in the subfolders of ``folder / "splits"`` or, if there is no such folder, where
    `read_all` finds them.

    Raises
    ------
    DataError
        If there are no results, or a file is invalid.
    """
    splits = folder / SPLITS
    found = _folders(splits if splits.is_dir() else folder)
    if not found:
        raise DataError(
            "no results of splits found",
            where=str(splits),
            hint="Create them: for each NAME of sites-2, sites-5, sites-10, sites-20, size-skew, "
            "dirichlet-1.0, dirichlet-0.3, dirichlet-0.1 and speakers, run "
            f"mdc compare simulations/comparisons/NAME.toml --output {splits}/NAME",
        )
    read = [read_results(path) for path in found]
    counts = Counter(map(_data, read))
    return sorted(read, key=lambda one: (-counts[_data(one)], _data(one), _unevenness(one)))


def of_first_data(splits: Sequence[Results]) -> list[Results]:
    """Return those of the results whose data are those of the first."""
    return [one for one in splits if split_name(one)[0] == split_name(splits[0])[0]]


def same_metric(comparisons: Sequence[Results]) -> ShownMetric:
    """Return the metric of all these comparisons.

    Raises
    ------
    DataError
        If they have different ones.
    """
    metrics = [results.facts.metric for results in comparisons]
    if any(metric != metrics[0] for metric in metrics):
        raise DataError(
            "the comparisons do not have the same metric",
            where=", ".join(results.facts.name for results in comparisons),
            got=", ".join(metric.label for metric in metrics),
        )
    return metrics[0]


def shared_arms(comparisons: Sequence[Results]) -> dict[str, ArmFacts]:
    """Return the arms of the first comparison that all have, by key."""
    keys = [{arm.key for arm in results.facts.arms} for results in comparisons]
    return {arm.key: arm for arm in comparisons[0].facts.arms if arm.key in set.intersection(*keys)}


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
    place = max(1, len(parts) - 2)
    return ", ".join(parts[:place]), ", ".join(parts[place:])


def _data(results: Results) -> tuple[str, str]:
    """Return job and data set of a comparison."""
    config = results.facts.arms[0].config
    return str(config.get("job", CLASSIFICATION_JOB)), str(config["dataset"])


def _unevenness(results: Results) -> tuple[int, int, float]:
    """Return the sort key of a split of one data set: kind, number of sites, descending alpha."""
    config = results.facts.arms[0].config
    return (
        KINDS.index(str(config["partition"])),
        results.facts.num_sites,
        -float(config["partition-alpha"]),
    )
