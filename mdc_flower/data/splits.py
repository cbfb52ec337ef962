"""Splits: sites get their partitions; the coordinator gets validation and test examples.

The validation examples are held out from the training examples, site by site, so that neither
tuning nor the choice of the best model uses the test set. Pooled training, for comparison, uses
exactly the union of the sites' remaining training examples.

A data set with validation examples of its own keeps all training examples; simulated sites share
the validation examples evenly.

If the owners of the examples are known, whole owners are held out, the same ones at all simulated
sites: otherwise the validation would be on owners that the model knows. The exception are data
whose owners are the sites.
"""

from dataclasses import dataclass

import numpy as np

from mdc_flower.data.dataset import DataSet, Examples, Part
from mdc_flower.data.owners import check_left, held_out, owners_of_sites
from mdc_flower.data.partitions import Partition, Rows
from strategies.common.seeds import derive_seed


@dataclass(frozen=True)
class SiteData:
    """The examples of one site."""

    train: Examples | Part
    validation: Examples | Part


@dataclass(frozen=True)
class CoordinatorData:
    """The coordinator's examples: for evaluation, and for pooled training."""

    pooled: Examples | Part
    validation: Examples | Part
    test: Examples


def site_data(
    dataset: DataSet,
    partition: Partition | None,
    partition_id: int,
    seed: int,
    validation_fraction: float,
) -> SiteData:
    """Return a site's training and validation examples.

    Parameters
    ----------
    dataset
        The site's data set, or the data set that all simulated sites share.
    partition, partition_id
        The site's part of the data set; if ``partition`` is None, the site has all of it.
    seed
        The run's seed, which decides which examples are held out.
    validation_fraction
        Share to hold out, in (0, 1); at least one training example remains.
    """
    part = max(partition_id, 0)
    if dataset.validation is not None:
        own = np.arange(len(dataset.validation))
        held = own[part :: len(partition.rows)] if partition else own
        return SiteData(
            Part(dataset.train, _rows(dataset, partition, part)), Part(dataset.validation, held)
        )
    train, held = _split(dataset, partition, part, seed, validation_fraction)
    return SiteData(Part(dataset.train, train), Part(dataset.train, held))


def coordinator_data(
    dataset: DataSet, partition: Partition | None, seed: int, validation_fraction: float
) -> CoordinatorData:
    """Return the union of the sites' splits, and the test examples.

    If ``partition`` is None, the sites are real and have their own data. The coordinator then
    splits its own data set as if it were one site.
    """
    num_parts = len(partition.rows) if partition else 1
    if dataset.validation is not None:
        rows = [_rows(dataset, partition, part) for part in range(num_parts)]
        pooled = Part(dataset.train, np.sort(np.concatenate(rows)))
        return CoordinatorData(pooled, dataset.validation, dataset.test)
    splits = [
        _split(dataset, partition, part, seed, validation_fraction) for part in range(num_parts)
    ]
    return CoordinatorData(
        pooled=Part(dataset.train, np.sort(np.concatenate([train for train, _ in splits]))),
        validation=Part(dataset.train, np.sort(np.concatenate([held for _, held in splits]))),
        test=dataset.test,
    )


def _rows(dataset: DataSet, partition: Partition | None, part: int) -> Rows:
    """Return the rows of one part of the training examples."""
    return partition.rows[part] if partition else np.arange(len(dataset.train))


def _split(
    dataset: DataSet, partition: Partition | None, part: int, seed: int, fraction: float
) -> tuple[Rows, Rows]:
    """Return the training rows and the held-out rows of one part."""
    rows = _rows(dataset, partition, part)
    groups = dataset.train.groups
    parts = list(partition.rows) if partition else [rows]
    if groups is not None and not owners_of_sites(groups, parts):
        is_held = held_out(groups, derive_seed(seed, "validation", 0), fraction)[rows]
        check_left(part, rows[~is_held], rows[is_held])
        return rows[~is_held], rows[is_held]
    return _hold_out(rows, derive_seed(seed, "validation", part), fraction)


def _hold_out(rows: Rows, seed: int, fraction: float) -> tuple[Rows, Rows]:
    order = np.random.default_rng(seed).permutation(rows)
    held = min(max(1, round(fraction * len(rows))), max(0, len(rows) - 1))
    return np.sort(order[held:]), np.sort(order[:held])
