"""Partition training examples into simulated sites, with flwr-datasets' partitioners.

The partition depends only on labels, config and seed, so it is the same everywhere. It is computed
once and cached, because importing the partitioners would cost each worker seconds.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdc_flower.common.extras import library
from mdc_flower.data.cache import cached_arrays
from mdc_flower.data.dataset import Examples
from strategies.common.errors import ConfigError
from strategies.common.seeds import derive_seed

Rows = NDArray[np.int64]

CUT_VERSION = 3
"""Increase it when partitions, their seeds or their stored form change, to invalidate the cache."""

LEAST = 3
"""Minimum number of examples per site of a Dirichlet partition: one is held out for validation,
and BatchNorm cannot train on a single one."""


@dataclass(frozen=True)
class PartitionSpec:
    """How to partition the examples, and into how many sites.

    Attributes
    ----------
    kind : str
        ``iid``; ``dirichlet``: class shares of the sites drawn from Dirichlet(alpha) (Hsu et
        al., 2019); ``shards``: each site gets ``shards`` contiguous shards of the examples
        sorted by class (McMahan et al., 2017); ``size-skew``: IID with sizes in geometric
        progression, the largest ``size_ratio`` times the smallest; ``natural-id``: one site
        for each group of the data set.
    """

    kind: str
    num_sites: int
    seed: int
    alpha: float = 0.3
    shards: int = 2
    size_ratio: float = 10.0


@dataclass(frozen=True)
class Partition:
    """Training rows of each site, by partition id."""

    rows: tuple[Rows, ...]

    @property
    def sha256(self) -> str:
        """Return a digest of the rows of every site."""
        digest = hashlib.sha256()
        for rows in self.rows:
            digest.update(len(rows).to_bytes(8, "big") + np.asarray(rows, np.int64).tobytes())
        return digest.hexdigest()

    def histogram(self, labels: NDArray[np.int64], num_classes: int) -> list[list[int]]:
        """Return the number of examples of each class (inner) at each site (outer)."""
        return [np.bincount(labels[rows], minlength=num_classes).tolist() for rows in self.rows]


def partition(examples: Examples, spec: PartitionSpec) -> Partition:
    """Partition the examples into sites.

    Raises
    ------
    ConfigError
        If the examples cannot be partitioned this way: fewer examples than sites, a site
        without examples, or no groups for ``natural-id``.
    """
    digest = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
    digest.update(np.ascontiguousarray(examples.labels).tobytes())
    if spec.kind == "natural-id" and examples.groups is not None:
        digest.update("\0".join(map(str, examples.groups.tolist())).encode())
    arrays = cached_arrays(
        f"partition-v{CUT_VERSION}-{digest.hexdigest()[:16]}",
        lambda: _joined(_cut(examples, spec)),
    )
    return Partition(tuple(np.split(np.asarray(arrays["rows"]), arrays["ends"][:-1])))


def _joined(parts: list[Rows]) -> dict[str, Rows]:
    """Return all sites' rows in one array; one file per site would exhaust file descriptors."""
    return {"rows": np.concatenate(parts), "ends": np.cumsum([len(rows) for rows in parts])}


def _cut(examples: Examples, spec: PartitionSpec) -> list[Rows]:
    if len(examples) < spec.num_sites:
        raise ConfigError(
            "there are more sites than training examples",
            where="num-sites",
            got=spec.num_sites,
            expected=f"at most {len(examples)}",
        )
    # The partitioners keep the order of the examples, and some data sets are sorted by class.
    order = np.random.default_rng(derive_seed(spec.seed, "partition")).permutation(len(examples))
    if spec.kind == "iid":
        # The same as in flwr_datasets, which takes seconds to import.
        parts = np.array_split(order, spec.num_sites)
    else:
        parts = _cut_by_library(examples, spec, order)
    parts = _with_leftovers([np.sort(rows) for rows in parts], len(examples))
    if empty := [site for site, rows in enumerate(parts) if len(rows) == 0]:
        raise ConfigError(
            f"site {empty[0]} would have no examples",
            where="partition",
            got=spec.kind,
            hint="Use fewer sites, or a less extreme skew",
        )
    return parts


def _cut_by_library(examples: Examples, spec: PartitionSpec, order: Rows) -> list[Rows]:
    """Return the rows of each site, from flwr_datasets on the examples in this order."""
    import datasets

    columns: dict[str, Any] = {"row": order, "label": examples.labels[order]}
    if spec.kind == "natural-id":
        columns["group"] = _groups(examples, spec)[order]
    try:
        partitioner = _partitioner(spec, len(examples))
        partitioner.dataset = datasets.Dataset.from_dict(columns)
        return [
            np.asarray(partitioner.load_partition(site)["row"], dtype=np.int64)
            for site in range(spec.num_sites)
        ]
    except ValueError as error:  # raised by the partitioners
        raise ConfigError(
            f"the examples cannot be partitioned this way: {error}",
            where="partition",
            got=spec.kind,
        ) from None


def _with_leftovers(parts: list[Rows], num_examples: int) -> list[Rows]:
    """Return the parts with the leftover rows, which go to the sites in turn.

    All shards have the same size, so the remainder of the division belongs to no shard.
    """
    left = np.setdiff1d(np.arange(num_examples), np.concatenate(parts))
    return [
        np.sort(np.concatenate([rows, left[site :: len(parts)]])) for site, rows in enumerate(parts)
    ]


def _partitioner(spec: PartitionSpec, num_examples: int) -> Any:
    partitioners = library("flwr_datasets.partitioner", "simulation", "partition")

    seed = derive_seed(spec.seed, "partitioner") % 2**32
    match spec.kind:
        case "dirichlet":
            return partitioners.DirichletPartitioner(
                spec.num_sites, "label", spec.alpha, min_partition_size=LEAST, seed=seed
            )
        case "shards":
            if spec.num_sites * spec.shards > num_examples:
                raise ConfigError(
                    "there are more shards than training examples",
                    where="partition-shards",
                    got=f"{spec.shards} for each of {spec.num_sites} sites",
                    expected=f"at most {num_examples // spec.num_sites}",
                )
            return partitioners.ShardPartitioner(
                spec.num_sites, "label", num_shards_per_partition=spec.shards, seed=seed
            )
        case "size-skew":
            return partitioners.SizePartitioner(_geometric_sizes(spec, num_examples))
        case "natural-id":
            return partitioners.NaturalIdPartitioner("group")
    raise ConfigError("no such partition", where="partition", got=spec.kind)


def _geometric_sizes(spec: PartitionSpec, num_examples: int) -> list[int]:
    """Return sizes that sum to ``num_examples``, the last ``size_ratio`` times the first."""
    weights = np.geomspace(1.0, spec.size_ratio, spec.num_sites)
    bounds = np.rint(np.cumsum(weights) / weights.sum() * num_examples).astype(int)
    return [int(size) for size in np.diff(bounds, prepend=0)]


def _groups(examples: Examples, spec: PartitionSpec) -> NDArray[np.generic]:
    if examples.groups is None:
        raise ConfigError("the data set has no natural groups", where="partition", got="natural-id")
    found = len(np.unique(examples.groups))
    if found != spec.num_sites:
        raise ConfigError(
            "natural-id needs one site per group",
            where="num-sites",
            got=spec.num_sites,
            expected=f"{found}, the number of groups in the data set",
        )
    return examples.groups
