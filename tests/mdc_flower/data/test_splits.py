"""Who sees which examples: no row twice, none of the test set, and the same at both ends."""

from dataclasses import replace

import numpy as np
import pytest

from mdc_flower.data import DataSet, Examples, Part, coordinator_data, site_data
from mdc_flower.data.partitions import Partition
from tests.mdc_flower.examples import dataset_of, numbered

NUM_TRAIN = 60
# Of different sizes and in no order; not every row is at a site.
PARTS = Partition((np.arange(0, 40, 2), np.array([1, 3, 5]), np.arange(40, 57)))


def data(num_train: int = NUM_TRAIN) -> DataSet:
    test = numbered(10)
    return dataset_of(numbered(num_train), Examples(test.inputs + 1000, test.labels))


def rows(examples: Examples | Part) -> list[int]:
    """Return the rows of the data set that these examples are."""
    return examples.inputs[:, 0].astype(int).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_a_sites_two_splits_are_its_part_without_overlap(fraction: float) -> None:
    for site, part in enumerate(PARTS.rows):
        split = site_data(data(), PARTS, site, 1, fraction)
        assert sorted(rows(split.train) + rows(split.validation)) == part.tolist()
        assert rows(split.train) == sorted(rows(split.train))
        assert rows(split.validation) == sorted(rows(split.validation))


# 0.1 of 20 is 2; of 17, 1.7 rounds to 2; of 3, 0.3 rounds to 0, but one is always held out.
# 0.5 of 17 is 8.5, which rounds to the even 8; 0.99 of 3 rounds to 3, but one always stays.
@pytest.mark.parametrize(
    ("fraction", "held"),
    [(0.1, [2, 1, 2]), (0.5, [10, 2, 8]), (0.99, [19, 2, 16]), (0.001, [1, 1, 1])],
)
def test_the_number_held_out_is_exact(fraction: float, held: list[int]) -> None:
    splits = [site_data(data(), PARTS, site, 1, fraction) for site in range(3)]
    assert [len(split.validation) for split in splits] == held


def test_a_site_of_one_example_trains_on_it() -> None:
    split = site_data(data(), Partition((np.array([7]),)), 0, 1, 0.5)
    assert (rows(split.train), rows(split.validation)) == ([7], [])


def test_labels_and_groups_go_with_their_rows() -> None:
    grouped = dataset_of(numbered(60, groups=[f"g{i}" for i in range(60)]), numbered(2))
    split = site_data(grouped, PARTS, 2, 1, 0.3)
    for part in (split.train, split.validation):
        assert part.labels.tolist() == [row % 2 for row in rows(part)]
        assert part.groups is not None
        assert part.groups.tolist() == [f"g{row}" for row in rows(part)]


def test_the_coordinator_holds_exactly_what_the_sites_hold() -> None:
    held = coordinator_data(data(), PARTS, 1, 0.3)
    splits = [site_data(data(), PARTS, site, 1, 0.3) for site in range(3)]
    assert rows(held.pooled) == sorted(row for split in splits for row in rows(split.train))
    assert rows(held.validation) == sorted(row for s in splits for row in rows(s.validation))


def test_pooled_and_validation_are_the_training_rows_and_test_the_test_rows() -> None:
    one = data()
    whole = Partition((np.arange(0, 20), np.arange(20, 60)))
    held = coordinator_data(one, whole, 1, 0.25)
    assert not set(rows(held.pooled)) & set(rows(held.validation))
    assert sorted(rows(held.pooled) + rows(held.validation)) == list(range(NUM_TRAIN))
    assert held.test is one.test
    assert min(rows(held.test)) == 1000


def test_a_row_that_is_at_no_site_is_seen_by_nobody() -> None:
    held = coordinator_data(data(), PARTS, 1, 0.3)
    seen = set(rows(held.pooled)) | set(rows(held.validation))
    assert seen == set(np.concatenate(PARTS.rows).tolist())


def test_a_real_site_cuts_all_of_its_own_data() -> None:
    split = site_data(data(), None, -1, 1, 0.25)
    assert (len(split.train), len(split.validation)) == (45, 15)
    assert sorted(rows(split.train) + rows(split.validation)) == list(range(NUM_TRAIN))


def test_without_partitions_the_coordinator_cuts_its_own_data_the_same_way() -> None:
    held, split = coordinator_data(data(), None, 1, 0.25), site_data(data(), None, -1, 1, 0.25)
    assert (rows(held.pooled), rows(held.validation)) == (rows(split.train), rows(split.validation))


def test_what_is_held_out_depends_on_the_seed_alone() -> None:
    def validation(seed: int) -> list[int]:
        return rows(coordinator_data(data(), PARTS, seed, 0.3).validation)

    assert validation(1) == validation(1)
    assert validation(1) != validation(2)


def test_what_is_held_out_is_drawn_and_not_cut_off_at_an_end() -> None:
    held = {tuple(rows(site_data(data(), None, -1, seed, 0.1).validation)) for seed in range(20)}
    assert len(held) == 20
    positions = np.array(list(held)).mean()
    # 20 times 6 rows of 0 to 59: mean 29.5, with a deviation of 17.3 / sqrt(120) = 1.6.
    assert abs(positions - 29.5) < 4 * 1.6


def test_sites_of_equal_parts_hold_out_different_positions() -> None:
    same = Partition((np.arange(60), np.arange(60)))
    one, other = (site_data(data(), same, site, 1, 0.2) for site in range(2))
    assert rows(one.validation) != rows(other.validation)


def test_a_coordinator_without_examples_holds_none() -> None:
    nothing = Examples(np.empty((0, 1), np.float32), np.empty(0, np.int64))
    held = coordinator_data(dataset_of(nothing, nothing), None, 1, 0.1)
    assert [len(part) for part in (held.pooled, held.validation, held.test)] == [0, 0, 0]


def test_validation_examples_of_its_own_are_shared_evenly_and_none_are_held_out() -> None:
    own = data()
    own = replace(own, validation=Examples(numbered(7).inputs + 500, numbered(7).labels))
    sites = [site_data(own, PARTS, site, 1, 0.3) for site in range(3)]
    assert [rows(site.train) for site in sites] == [part.tolist() for part in PARTS.rows]
    assert [len(site.validation) for site in sites] == [3, 2, 2]
    held = coordinator_data(own, PARTS, 1, 0.3)
    assert sorted(row for site in sites for row in rows(site.validation)) == rows(held.validation)
    assert rows(held.pooled) == sorted(row for part in PARTS.rows for row in part.tolist())
