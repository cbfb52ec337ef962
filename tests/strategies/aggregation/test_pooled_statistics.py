"""Pooled statistics equal the statistics of all data, by the law of total variance."""

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.aggregation.averaging import Update, by_examples, uniform
from strategies.aggregation.pooled_statistics import pooled_statistics

LAYERS = {"bn.running_mean": "bn.running_var"}


def update(site: str, count: int, mean: list[float], variance: list[float]) -> Update:
    arrays: dict[str, NDArray[np.generic]] = {
        "bn.running_mean": np.array(mean, np.float32),
        "bn.running_var": np.array(variance, np.float32),
    }
    return Update(site, count, arrays, {})


def test_the_variance_of_a_mixture_by_hand() -> None:
    # One example at 0, three around 4: m = 3; v = (1/4)(2 + 9) + (3/4)(6 + 1) = 8.
    folded = pooled_statistics(
        [update("a", 1, [0.0], [2.0]), update("b", 3, [4.0], [6.0])], by_examples, LAYERS
    )
    assert list(folded) == ["bn.running_mean", "bn.running_var"]
    assert [array.tolist() for array in folded.values()] == [[3.0], [8.0]]
    assert folded["bn.running_var"].dtype == np.float32
    # Evenly weighed: m = 2; v = (2 + 4 + 6 + 4) / 2.
    even = pooled_statistics(
        [update("a", 1, [0.0], [2.0]), update("b", 3, [4.0], [6.0])], uniform, LAYERS
    )
    assert [array.tolist() for array in even.values()] == [[2.0], [8.0]]


def test_statistics_of_parts_fold_to_those_of_the_whole() -> None:
    random = np.random.default_rng(5)
    parts = [random.normal(loc, 1 + loc, (count, 3)) for loc, count in ((0, 7), (5, 11), (9, 2))]
    updates = [
        update(f"site-{index}", len(part), list(part.mean(0)), list(part.var(0)))
        for index, part in enumerate(parts)
    ]
    folded = pooled_statistics(updates, by_examples, LAYERS)
    whole = np.concatenate(parts)
    assert folded["bn.running_mean"] == pytest.approx(whole.mean(0), rel=1e-6)
    assert folded["bn.running_var"] == pytest.approx(whole.var(0), rel=1e-6)


def test_one_site_or_equal_sites_give_that_sites_to_the_bit() -> None:
    one = update("a", 3, [0.1, 1e8], [1e-9, 0.3])
    for updates in ([one], [one, update("b", 5, [0.1, 1e8], [1e-9, 0.3])]):
        folded = pooled_statistics(updates, by_examples, LAYERS)
        for name, array in one.arrays.items():
            assert folded[name].tobytes() == array.tobytes()


def test_no_variance_is_below_0_where_squares_cancel() -> None:
    # In float64, (1e8)^2 has no room for a variance of 1e-3.
    updates = [update("a", 1, [1e8], [1e-3]), update("b", 1, [1e8 + 8], [1e-3])]
    assert pooled_statistics(updates, by_examples, LAYERS)["bn.running_var"] == pytest.approx(
        [16.001]
    )
