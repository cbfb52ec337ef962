"""How training examples are cut into sites: all of them, each once, the same everywhere."""

import os
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mdc_flower.data import Examples
from mdc_flower.data.partitions import Partition, PartitionSpec, partition
from strategies.common.errors import ConfigError
from strategies.common.seeds import derive_seed

ROOT = Path(__file__).parents[3]

# Dirichlet draws again, and says so, when a site comes out too small.
pytestmark = pytest.mark.filterwarnings("ignore:The specified min_partition_size")


def examples(count: int = 100, num_classes: int = 5, groups: list[str] | None = None) -> Examples:
    """Return examples sorted by class, as data sets often are."""
    labels = np.sort(np.arange(count) % num_classes)
    inputs = np.zeros((count, 1), np.float32)
    return Examples(inputs, labels, None if groups is None else np.array(groups))


def cut(
    kind: str,
    num_sites: int,
    of: Examples | None = None,
    seed: int = 1,
    alpha: float = 0.3,
    shards: int = 2,
    size_ratio: float = 10.0,
) -> Partition:
    spec = PartitionSpec(kind, num_sites, seed, alpha, shards, size_ratio)
    return partition(examples() if of is None else of, spec)


def sizes(parts: Partition) -> list[int]:
    return [len(rows) for rows in parts.rows]


GROUPS = [f"clinic {row % 3}" for row in range(100)]
KINDS = ["iid", "dirichlet", "shards", "size-skew"]


# 100 rows at 3 or 7 sites, and 97, a prime number: nothing divides evenly.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_examples", "num_sites"), [(100, 1), (100, 5), (100, 3), (97, 7)])
def test_every_row_is_at_exactly_one_site(kind: str, num_examples: int, num_sites: int) -> None:
    parts = cut(kind, num_sites, examples(num_examples))
    assert len(parts.rows) == num_sites
    assert np.sort(np.concatenate(parts.rows)).tolist() == list(range(num_examples))
    assert all(len(rows) > 0 for rows in parts.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_sorted_whole_numbers(kind: str) -> None:
    for rows in cut(kind, 4).rows:
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


def test_many_sites_need_no_more_file_descriptors_than_few() -> None:
    many = 300
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cut("size-skew", 2)  # what a first cut imports is read now
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 32, hard))
    try:
        parts = cut("size-skew", many, examples(3 * many), size_ratio=1.0)
        held = [parts.rows[site] for site in range(many)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sizes(parts) == [3] * many
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(3 * many))


def equal(one: Partition, other: Partition) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.rows, other.rows, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_is_the_same_cut_and_another_seed_another(
    kind: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cut(kind, 4)
    monkeypatch.setenv("MDC_CACHE_DIR", str(tmp_path))  # nothing to be remembered here
    again, other = cut(kind, 4), cut(kind, 4, seed=2)
    assert equal(again, first)
    assert again.sha256 == first.sha256
    assert other.sha256 != first.sha256


def test_the_digest_is_of_which_rows_are_whose() -> None:
    one = Partition((np.array([0, 1]), np.array([2])))
    assert one.sha256 == Partition((np.array([0, 1]), np.array([2]))).sha256
    for other in ([[2], [0, 1]], [[0], [1, 2]], [[0, 1, 2]], [[0, 1], [3]], [[0, 1], [2], []]):
        rows = tuple(np.array(part, dtype=np.int64) for part in other)
        assert Partition(rows).sha256 != one.sha256


def test_another_process_makes_the_same_cuts(tmp_path: Path) -> None:
    code = (
        "from tests.mdc_flower.data.test_partitions import KINDS, cut\n"
        "for kind in KINDS: print(cut(kind, 4).sha256)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env={**os.environ, "MDC_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [cut(kind, 4).sha256 for kind in KINDS]


def test_a_cut_depends_on_the_labels_and_not_on_the_inputs() -> None:
    one = examples()
    scaled = Examples(one.inputs + 5, one.labels)
    assert equal(cut("dirichlet", 4, scaled), cut("dirichlet", 4, one))
    relabelled = Examples(one.inputs, one.labels[::-1].copy())
    assert not equal(cut("dirichlet", 4, relabelled), cut("dirichlet", 4, one))


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("iid", {"num_sites": 4}, {"num_sites": 5}),
        ("dirichlet", {"alpha": 0.3}, {"alpha": 3.0}),
        ("shards", {"shards": 2}, {"shards": 4}),
        ("size-skew", {"size_ratio": 2.0}, {"size_ratio": 20.0}),
    ],
)
def test_each_setting_of_a_kind_makes_another_cut(
    kind: str, one: dict[str, float], other: dict[str, float]
) -> None:
    cuts = [cut(kind, **{"num_sites": 4} | settings) for settings in (one, other)]  # type: ignore[arg-type]
    assert cuts[0].sha256 != cuts[1].sha256


def test_the_histogram_counts_each_class_at_each_site() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    parts = Partition((np.array([0, 2]), np.array([1, 3, 4, 5])))
    assert parts.histogram(labels, 4) == [[1, 1, 0, 0], [1, 0, 3, 0]]


# Each kind


@pytest.mark.parametrize("seed", [1, 2, 5, 7])  # of which a first draw leaves a site with two
def test_a_site_of_dirichlet_has_at_least_three_examples(seed: int) -> None:
    # One to hold out, and two to train on: fewer is nothing to BatchNorm.
    assert min(sizes(cut("dirichlet", 5, examples(40), seed=seed, alpha=0.1))) >= 3


@pytest.mark.parametrize(("count", "num_sites"), [(100, 3), (97, 7), (10, 10), (50, 1)])
def test_iid_sizes_differ_by_at_most_one(count: int, num_sites: int) -> None:
    of_sites = sizes(cut("iid", num_sites, examples(count)))
    assert max(of_sites) - min(of_sites) <= 1


@pytest.mark.parametrize(("num_examples", "num_sites"), [(100, 5), (97, 7), (3, 3)])
def test_iid_sites_are_those_of_flwr_datasets(num_examples: int, num_sites: int) -> None:
    import datasets
    from flwr_datasets.partitioner import IidPartitioner

    seed = derive_seed(1, "partition")
    order = np.random.default_rng(seed).permutation(num_examples)
    library = IidPartitioner(num_sites)
    library.dataset = datasets.Dataset.from_dict({"row": order})
    expected = [sorted(library.load_partition(site)["row"]) for site in range(num_sites)]
    parts = cut("iid", num_sites, examples(num_examples))
    assert [rows.tolist() for rows in parts.rows] == expected


def test_iid_sites_have_all_classes_of_data_that_are_sorted_by_class() -> None:
    data = examples(1000)
    histogram = np.array(cut("iid", 4, data).histogram(data.labels, 5))
    # 250 draws of which a fifth is of a class: 50, with a deviation of at most sqrt(40) = 6.3.
    assert (np.abs(histogram - 50) < 4 * 6.3).all()


def test_dirichlet_skews_more_the_smaller_alpha_is() -> None:
    data = examples(1000)

    def unevenness(alpha: float) -> float:
        """Return the mean share of a site's most frequent class: a fifth if all are even."""
        seeds = [cut("dirichlet", 4, data, seed, alpha) for seed in range(5)]
        shares = [max(site) / sum(site) for one in seeds for site in one.histogram(data.labels, 5)]
        return float(np.mean(shares))

    skews = [unevenness(alpha) for alpha in (100.0, 1.0, 0.1)]
    assert skews[0] < 0.3
    assert skews[2] > 0.6
    assert skews == sorted(skews)


def test_shards_give_each_site_so_many_runs_of_the_examples_sorted_by_class() -> None:
    # 100 rows, 5 classes of 20; 5 sites of 2 shards: 10 shards of 10 rows, two of each class.
    data = examples(100)
    parts = cut("shards", 5, data, shards=2)
    assert sizes(parts) == [20] * 5
    for site in parts.histogram(data.labels, 5):
        assert sorted(set(site)) in ([0, 10], [0, 20])
    one_each = cut("shards", 5, data, shards=1).histogram(data.labels, 5)
    assert sorted(one_each) == sorted((20 * np.eye(5, dtype=int)).tolist())


# Weights 1, r^(1/(n-1)), ..., r; the bounds are the rounded running sums.
#   1, 10, 100 of 111 with 111 rows: sizes 1, 10, 100.
#   1, 2, 4, 8 of 15 with 30 rows: 2, 4, 8, 16.
#   1, 2, 4 of 7 with 200 rows: 28.6, 85.7 and 200 round to 29, 86 and 200: 29, 57, 114.
#   ratio 1 is even; one site has all.
@pytest.mark.parametrize(
    ("count", "num_sites", "ratio", "expected"),
    [
        (111, 3, 100.0, [1, 10, 100]),
        (30, 4, 8.0, [2, 4, 8, 16]),
        (200, 3, 4.0, [29, 57, 114]),
        (40, 4, 1.0, [10, 10, 10, 10]),
        (40, 1, 10.0, [40]),
    ],
)
def test_size_skew_is_a_geometric_progression(
    count: int, num_sites: int, ratio: float, expected: list[int]
) -> None:
    assert sizes(cut("size-skew", num_sites, examples(count), size_ratio=ratio)) == expected


def test_size_skew_leaves_the_classes_even() -> None:
    data = examples(1000)
    largest = np.array(cut("size-skew", 3, data).histogram(data.labels, 5)[-1])
    # 10 of 1 + 3.16 + 10: 706 rows, 141 of a class, with a deviation of less than 11.
    assert (np.abs(largest - 141) < 4 * 11).all()


@pytest.mark.parametrize(
    "groups",
    [GROUPS, [5 if row % 4 else 11 for row in range(100)]],
    ids=["names", "numbers"],
)
def test_natural_id_makes_one_site_of_each_group_in_their_order(groups: list[str]) -> None:
    owners: NDArray[np.generic] = np.array(groups)
    names = np.unique(owners)
    data = examples(groups=groups)
    parts = cut("natural-id", len(names), data)
    assert [set(owners[rows].tolist()) for rows in parts.rows] == [{n} for n in names.tolist()]
    assert np.sort(np.concatenate(parts.rows)).tolist() == list(range(100))
    assert equal(parts, cut("natural-id", len(names), data, seed=2))


def test_natural_id_follows_the_groups_when_they_change() -> None:
    before = cut("natural-id", 3, examples(groups=GROUPS))
    after = cut("natural-id", 3, examples(groups=GROUPS[1:] + GROUPS[:1]))
    assert not equal(before, after)


# Refused


@pytest.mark.parametrize(
    ("kind", "num_sites", "of", "settings", "where", "named"),
    [
        ("iid", 6, examples(5), {}, "num-sites", "more sites than training examples"),
        ("dirichlet", 6, examples(5), {}, "num-sites", "expected at most 5"),
        ("dirichlet", 10, examples(30), {"alpha": 0.001}, "partition", "cannot be partitioned"),
        (
            "shards", 3, examples(10), {"shards": 4}, "partition-shards",
            "more shards than training examples (got '4 for each of 3 sites', expected at most 3)",
        ),
        ("size-skew", 3, examples(10), {"size_ratio": 1000.0}, "partition", "size-skew"),
        ("natural-id", 3, examples(), {}, "partition", "the data set has no natural groups"),
        (
            "natural-id", 4, examples(groups=GROUPS), {}, "num-sites",
            "got 4, expected 3, the number of groups in the data set",
        ),
        ("random", 3, examples(), {}, "partition", "no such partition (got 'random')"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_so_is_refused_with_the_key(
    kind: str,
    num_sites: int,
    of: Examples,
    settings: dict[str, float],
    where: str,
    named: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        cut(kind, num_sites, of, **settings)  # type: ignore[arg-type]
    assert caught.value.where == where
    assert named in str(caught.value)


# Kept


def test_a_cut_is_made_once_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cut("dirichlet", 4)
    # Without its library the cut could not be made again.
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert equal(cut("dirichlet", 4), before)
    with pytest.raises(ImportError):
        cut("dirichlet", 4, seed=2)


def test_sites_keep_their_order_beyond_ten() -> None:
    of_sites = sizes(cut("size-skew", 12, examples(1000), size_ratio=50.0))
    assert all(smaller < larger for smaller, larger in pairwise(of_sites))
