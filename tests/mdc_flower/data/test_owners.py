"""Owners of examples: held out as a whole, and in one split only."""

import numpy as np
import pytest

from mdc_flower.data import DataSet, Examples, coordinator_data, site_data
from mdc_flower.data.owners import held_out, refuse_shared_owners
from mdc_flower.data.partitions import PartitionSpec, partition
from strategies.common.errors import ConfigError, DataError


def scans(patients: int = 40, each: int = 10) -> DataSet:
    """Return scans whose label is a coin toss per patient, with a mark of the patient."""
    chance = np.random.default_rng(3)
    owners = np.repeat(np.arange(patients), each)
    labels = np.repeat(chance.integers(0, 2, patients), each)
    inputs = owners[:, None].astype(np.float32)
    train = Examples(inputs, labels, owners)
    test = Examples(inputs[:each], labels[:each], owners[:each] + patients)
    return DataSet("scans", train, test, ["ill", "well"])


def test_a_real_site_holds_out_whole_patients() -> None:
    data = site_data(scans(), None, -1, 7, 0.2)
    trained, held = data.train.groups, data.validation.groups
    assert trained is not None
    assert held is not None
    assert not set(trained.tolist()) & set(held.tolist())
    assert len(data.validation) == 80
    assert len(data.train) == 320


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_no_simulated_site_trains_on_a_patient_that_another_one_validates_on(kind: str) -> None:
    data = scans()
    parts = partition(data.train, PartitionSpec(kind, 3, 7, alpha=1.0))
    held = coordinator_data(data, parts, 7, 0.2)
    assert held.pooled.groups is not None
    assert held.validation.groups is not None
    assert not set(held.pooled.groups.tolist()) & set(held.validation.groups.tolist())
    sites = [site_data(data, parts, site, 7, 0.2) for site in range(3)]
    assert sum(len(site.validation) for site in sites) == len(held.validation) == 80


def test_of_sites_that_are_the_owners_each_holds_out_some_of_its_rows() -> None:
    data = scans(3, 20)
    parts = partition(data.train, PartitionSpec("natural-id", 3, 7))
    sites = [site_data(data, parts, site, 7, 0.2) for site in range(3)]
    assert [(len(site.train), len(site.validation)) for site in sites] == [(16, 4)] * 3


def test_a_site_all_of_whose_owners_would_be_held_out_is_named() -> None:
    data = scans(2, 10)
    parts = type(partition(data.train, PartitionSpec("iid", 2, 1)))(
        (np.arange(5), np.arange(5, 15), np.arange(15, 20))
    )
    with pytest.raises(ConfigError, match="all its owners are held out"):
        coordinator_data(data, parts, 7, 0.5)


@pytest.mark.parametrize(("fraction", "held"), [(0.01, 5), (0.5, 10), (0.99, 15)])
def test_at_least_one_owner_is_held_out_and_one_remains(fraction: float, held: int) -> None:
    groups: np.ndarray = np.repeat(np.array(["a", "b", "c", "d"]), 5)
    assert int(held_out(groups, 1, fraction).sum()) == held


def test_an_owner_in_both_splits_is_named() -> None:
    data = scans()
    both = Examples(data.test.inputs, data.test.labels, np.zeros(len(data.test), np.int64))
    shared = DataSet("scans", data.train, both, data.class_names)
    refuse_shared_owners(data)
    with pytest.raises(DataError, match="1 of the owners are in both train and test") as caught:
        refuse_shared_owners(shared)
    assert caught.value.got == "0"


def test_one_owner_of_all_is_the_site() -> None:
    one = Examples(np.zeros((4, 2), np.float32), np.arange(4) % 2, np.array(["oslo"] * 4))
    refuse_shared_owners(DataSet("scans", one, one, ["ill", "well"]))
