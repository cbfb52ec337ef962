"""Averaging: exact means, properties of a mean, and the handling of each dtype."""

import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.aggregation.averaging import (
    WEIGHTINGS,
    Arrays,
    Update,
    by_examples,
    capped,
    in_site_order,
    uniform,
    weighted_mean,
)

FLOATS = ["float16", "float32", "float64"]


def update(site: str, num_examples: int = 1, /, **arrays: Any) -> Update:
    return Update(site, num_examples, {name: np.asarray(a) for name, a in arrays.items()}, {})


def random_updates(dtype: str, counts: Sequence[int]) -> list[Update]:
    """Return updates with values spread over six orders of magnitude."""
    generator = np.random.default_rng(0)
    updates = []
    for index, count in enumerate(counts):
        values = generator.standard_normal(64) * 10.0 ** generator.integers(-3, 3, 64)
        updates.append(update(f"site-{index}", count, w=values.astype(dtype)))
    return updates


def bits(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return arrays in a form that compares equal only if every bit is equal."""
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}


@pytest.mark.parametrize(
    ("weights", "max_share", "expected"),
    [
        ([1.0, 1.0, 8.0], 1.0, [1.0, 1.0, 8.0]),
        ([1.0, 1.0, 8.0], 0.8, [1.0, 1.0, 8.0]),
        ([1.0, 1.0, 8.0], 0.5, [1.0, 1.0, 2.0]),
        ([1.0, 8.0, 8.0], 0.4, [1.0, 2.0, 2.0]),
        ([2.0**53, 3.0], 0.5, [1.0, 1.0]),
        ([1.0, 2.0**53, 1.0], 0.5, [1.0, 2.0, 1.0]),
        ([5.0, 1.0, 1.0], 0.2, [1.0, 1.0, 1.0]),  # three cannot have a fifth each
        ([7.0], 0.5, [1.0]),
        ([], 0.5, []),
    ],
)
def test_no_weight_is_more_than_its_share_of_the_sum(
    weights: list[float], max_share: float, expected: list[float]
) -> None:
    assert capped(weights, max_share) == pytest.approx(expected)


@pytest.mark.parametrize("max_share", [0.26, 0.3, 0.5, 0.9])
def test_the_share_is_kept_whatever_one_site_claims(max_share: float) -> None:
    weights = capped([float(2**53), 10.0, 20.0, 1e-9, 2.0], max_share)
    assert max(weights) <= max_share * sum(weights) * (1 + 1e-9)


def test_the_mean_by_examples_by_hand() -> None:
    # Weights 1 and 3: (1 * 0 + 3 * 4) / 4 = 3 and (1 * 8 + 3 * 0) / 4 = 2.
    updates = [update("a", 1, w=[0.0, 8.0]), update("b", 3, w=[4.0, 0.0])]
    assert weighted_mean(updates, by_examples)["w"].tolist() == [3.0, 2.0]


def test_the_uniform_mean_by_hand() -> None:
    updates = [update("a", 1, w=[0.0, 8.0]), update("b", 3, w=[4.0, 0.0])]
    assert weighted_mean(updates, uniform)["w"].tolist() == [2.0, 4.0]


def test_the_weightings_by_name() -> None:
    one = update("a", 7, w=[0.0])
    assert {name: weighting(one) for name, weighting in WEIGHTINGS.items()} == {
        "examples": 7.0,
        "uniform": 1.0,
    }


def test_only_the_proportions_of_the_weights_matter() -> None:
    few = [update("a", 1, w=[0.0, 8.0]), update("b", 3, w=[4.0, 0.0])]
    many = [update("a", 10, w=[0.0, 8.0]), update("b", 30, w=[4.0, 0.0])]
    assert bits(weighted_mean(few, by_examples)) == bits(weighted_mean(many, by_examples))


def test_sites_are_folded_in_the_order_of_their_names() -> None:
    names = ["site-2", "site-10", "a", "B"]
    ordered = in_site_order(update(name, w=[0.0]) for name in names)
    assert [one.site for one in ordered] == ["B", "a", "site-10", "site-2"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_in_site_order_the_mean_does_not_depend_on_the_order_of_arrival(dtype: str) -> None:
    updates = random_updates(dtype, [7, 11, 13, 17])
    means = [
        bits(weighted_mean(in_site_order(arrived), by_examples))
        for arrived in itertools.permutations(updates)
    ]
    assert all(mean == means[0] for mean in means)


def test_without_site_order_the_mean_does_depend_on_it() -> None:
    # Or else the law above would hold of anything.
    updates = random_updates("float64", [7, 11, 13, 17])
    assert bits(weighted_mean(updates, by_examples)) != bits(
        weighted_mean(updates[::-1], by_examples)
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_updates_are_a_fixed_point_to_the_bit(dtype: str) -> None:
    (one,) = random_updates(dtype, [1])
    updates = [Update(f"site-{n}", n, one.arrays, {}) for n in (3, 5, 7)]
    assert bits(weighted_mean(updates, by_examples)) == bits(one.arrays)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_site_returns_its_own_model_to_the_bit(dtype: str) -> None:
    updates = random_updates(dtype, [3])
    assert bits(weighted_mean(updates, by_examples)) == bits(updates[0].arrays)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_with_equal_counts_the_mean_by_examples_is_the_uniform_mean(dtype: str) -> None:
    updates = random_updates(dtype, [5, 5, 5])
    assert bits(weighted_mean(updates, by_examples)) == bits(weighted_mean(updates, uniform))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_of_the_largest_numbers_is_finite(dtype: str) -> None:
    largest = np.array([np.finfo(dtype).max], dtype)
    mean = weighted_mean([update("a", 3, w=largest), update("b", 4, w=largest)], by_examples)
    assert mean["w"].tolist() == largest.tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_float_array_keeps_its_dtype_and_shape(dtype: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {"scalar": (), "empty": (0, 3), "conv": (2, 1, 3, 3)}
    ones = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
    threes = {name: np.full(shape, 3, dtype) for name, shape in shapes.items()}
    mean = weighted_mean([update("a", 1, **ones), update("b", 1, **threes)], uniform)
    for name, shape in shapes.items():
        assert isinstance(mean[name], np.ndarray)
        assert (mean[name].dtype, mean[name].shape) == (np.dtype(dtype), shape)
        assert np.all(mean[name] == 2.0)


def test_the_sum_is_kept_in_float64() -> None:
    # (2^24 + 1 + 1 + 2) / 4 = 2^22 + 1. In float32, 2^24 + 1 is 2^24: the ones would be lost.
    updates = [
        update(f"site-{index}", w=np.array([value], np.float32))
        for index, value in enumerate([2.0**24, 1.0, 1.0, 2.0])
    ]
    assert weighted_mean(updates, uniform)["w"].tolist() == [2.0**22 + 1]


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_a_counter_comes_from_the_first_site_and_keeps_its_dtype(dtype: str) -> None:
    first, second = np.array([1, 0], dtype), np.array([0, 1], dtype)
    updates = [update("b", 9, n=second), update("a", 1, n=first)]
    mean = weighted_mean(in_site_order(updates), by_examples)
    assert bits(mean) == bits({"n": first})


def test_a_constant_that_is_not_finite_stays_as_it_is() -> None:
    mask = np.array([[0.0, -np.inf], [0.0, 0.0]], np.float32)
    mean = weighted_mean([update("a", 1, m=mask), update("b", 2, m=mask)], by_examples)
    assert mean["m"].tobytes() == mask.tobytes()


def test_batch_norm_statistics_are_averaged_and_its_counter_is_not() -> None:
    # Weights 1 and 3: mean (1 * 4 + 3 * 0) / 4 = 1, variance (1 * 1 + 3 * 5) / 4 = 4.
    one = {
        "bn.running_mean": np.array([4.0], np.float32),
        "bn.running_var": np.array([1.0], np.float32),
        "bn.num_batches_tracked": np.array(10),
    }
    other = {
        "bn.running_mean": np.array([0.0], np.float32),
        "bn.running_var": np.array([5.0], np.float32),
        "bn.num_batches_tracked": np.array(30),
    }
    mean = weighted_mean([update("a", 1, **one), update("b", 3, **other)], by_examples)
    assert {name: array.tolist() for name, array in mean.items()} == {
        "bn.running_mean": [1.0],
        "bn.running_var": [4.0],
        "bn.num_batches_tracked": 10,
    }


def test_arrays_keep_the_order_of_the_model() -> None:
    one = update("a", z=[1.0], n=[1], b=[2.0])
    assert list(weighted_mean([one, one], uniform)) == ["z", "n", "b"]


@pytest.mark.parametrize("num_sites", [1, 2])
def test_the_updates_are_left_alone_and_share_no_memory_with_the_mean(num_sites: int) -> None:
    updates = [update(f"s{i}", 2, w=np.array([1.0 + i]), n=np.array([i])) for i in range(num_sites)]
    before = [bits(one.arrays) for one in updates]
    mean = weighted_mean(updates, by_examples)
    for one in updates:
        assert not any(np.shares_memory(mean[name], array) for name, array in one.arrays.items())
    assert [bits(one.arrays) for one in updates] == before


def test_the_names_say_which_arrays_are_averaged_and_in_which_order() -> None:
    one = update("a", z=[1.0], n=[1], b=[2.0])
    mean = weighted_mean([one, one], uniform, iter(["b", "z"]))
    assert list(mean) == ["b", "z"]
    assert mean["b"].tolist() == [2.0]


class Stored(Mapping[str, NDArray[np.generic]]):
    """Arrays that are created on access, as if read from a file."""

    def __init__(self, value: float, born: list[weakref.ref[NDArray[np.generic]]]) -> None:
        self.value = value
        self.born = born

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        array = np.full(4, self.value)
        self.born.append(weakref.ref(array))
        self.most_alive = sum(reference() is not None for reference in self.born)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(["v", "w"])

    def __len__(self) -> int:
        return 2


def test_memory_does_not_grow_with_the_number_of_sites() -> None:
    born: list[weakref.ref[NDArray[np.generic]]] = []
    stored = [Stored(float(index), born) for index in range(20)]
    updates = [Update(f"site-{index:02}", 1, arrays, {}) for index, arrays in enumerate(stored)]
    mean = weighted_mean(updates, uniform)
    # (0 + 1 + ... + 19) / 20 = 9.5
    assert mean["v"] == pytest.approx([9.5] * 4)
    assert mean["w"] == pytest.approx([9.5] * 4)
    assert len(born) >= 40
    assert max(arrays.most_alive for arrays in stored) <= 2  # the first, for its dtype, and one


def test_no_update_is_refused() -> None:
    with pytest.raises(ValueError, match="no update to average"):
        weighted_mean([], uniform)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_that_do_not_sum_to_more_than_zero_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weights of the updates sum to"):
        weighted_mean([update("a", w=[1.0])], lambda one: weight)
