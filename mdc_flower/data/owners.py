"""Owners of examples: which of them are held out, and whether one is in both splits."""

import numpy as np
from numpy.typing import NDArray

from mdc_flower.data.dataset import DataSet
from mdc_flower.data.partitions import Rows
from strategies.common.errors import ConfigError, DataError

Groups = NDArray[np.generic]

SHOWN = 3


def held_out(groups: Groups, seed: int, fraction: float) -> NDArray[np.bool_]:
    """Return for each example whether its owner is held out.

    Owners are taken in a random order as long as that brings the share of held-out examples nearer
    to ``fraction``; there is at least one, and at least one remains.

    Parameters
    ----------
    groups
        The owner of each example, at least two different ones.
    seed
        Decides the order.
    fraction
        Share of the examples to hold out.
    """
    _, owner, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    distances = np.abs(np.cumsum(counts[order])[:-1] - fraction * len(groups))
    chosen = order[: int(distances.argmin()) + 1]
    return np.isin(owner, chosen)


def owners_of_sites(groups: Groups, parts: list[Rows]) -> bool:
    """Return whether the owners are the sites: every part belongs to one owner."""
    return all(len(np.unique(groups[rows])) < 2 for rows in parts)


def check_left(part: int, train: Rows, held: Rows) -> None:
    """Refuse a site whose examples are all of held-out owners."""
    if len(held) and not len(train):
        raise ConfigError(
            f"site {part} would have no training examples: all its owners are held out",
            where="validation-fraction",
            hint="Use a smaller validation-fraction, fewer sites, or another seed",
        )


def refuse_shared_owners(dataset: DataSet) -> None:
    """Refuse a data set with an owner in train and in another split: it would be known there.

    If all examples have one owner, it is the site.

    Raises
    ------
    DataError
        Naming the first such owners.
    """
    for split, others in dataset.splits.items():
        if split == "train" or dataset.train.groups is None or others.groups is None:
            continue
        owners, there = set(dataset.train.groups.tolist()), set(others.groups.tolist())
        shared = sorted(owners & there, key=str)
        if not shared or len(owners | there) == 1:
            continue
        shown = ", ".join(map(str, shared[:SHOWN])) + (", ..." if len(shared) > SHOWN else "")
        raise DataError(
            f"{len(shared)} of the owners are in both train and {split}",
            where=f"data set {dataset.name!r}",
            got=shown,
            expected="each owner in one of them",
            hint="A model knows the owners it was trained on, so a score on them says too much. "
            "If the owners are the sites, set partition = 'natural-id'",
        )
