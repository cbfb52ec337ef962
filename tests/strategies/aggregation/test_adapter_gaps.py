"""The gap between the mean of adapters and the mean of what they do."""

from typing import Any

import numpy as np
import pytest

from strategies.aggregation.adapter_gaps import adapter_gaps, pairs_of
from strategies.aggregation.averaging import Update, by_examples

A, B = "q.lora_A.default.weight", "q.lora_B.default.weight"


def update(site: str, a: Any, b: Any, weight: int = 1) -> Update:
    arrays = {A: np.array(a, np.float32), B: np.array(b, np.float32)}
    return Update(site, weight, arrays, {})


def test_pairs_are_found_by_peft_names() -> None:
    names = [
        A, B, "base.v.lora_A.second.weight", "base.v.lora_B.second.weight",
        "e.lora_embedding_A.default", "e.lora_embedding_B.default", "lora_A", "lora_B",
        "head.weight", "alone.lora_A.default.weight", "my_lora_A", "my_lora_B",
    ]  # fmt: skip
    assert pairs_of(names) == {
        "q": (A, B),
        "base.v.second": ("base.v.lora_A.second.weight", "base.v.lora_B.second.weight"),
        "e": ("e.lora_embedding_A.default", "e.lora_embedding_B.default"),
        "lora_A": ("lora_A", "lora_B"),
    }
    assert adapter_gaps([Update("a", 1, {"head.weight": np.ones(2)}, {})], by_examples) == {}


def test_arrays_that_are_multiplied_in_another_way_have_none() -> None:
    for a, b in ((np.ones((8, 3)), np.ones((3, 5))), (np.ones(3), np.ones(3))):
        assert adapter_gaps([update("a", a, b)], by_examples) == {}


def test_the_gap_by_hand() -> None:
    one = update("a", [[1, 0]], [[2], [0]])
    assert adapter_gaps([one, update("b", [[0, 1]], [[2], [0]])], by_examples) == {"q": 0.0}
    other = update("b", [[0, 1]], [[0], [4]])
    # The mean of the products is [[1, 0], [0, 2]]; the means give [[.5, .5], [1, 1]].
    found = adapter_gaps([one, other], by_examples)
    assert found == {"q": pytest.approx((2.5 / 5) ** 0.5)}
    nothing = [update(site, [[1, 0]], [[0], [0]]) for site in "ab"]
    assert adapter_gaps(nothing, by_examples) == {"q": 0.0}


def test_the_same_a_everywhere_gives_no_gap_at_all() -> None:
    random = np.random.default_rng(1)
    a = random.normal(size=(3, 8))
    updates = [update(str(n), a, random.normal(size=(5, 3)), n + 1) for n in range(3)]
    assert adapter_gaps(updates, by_examples) == {"q": 0.0}


@pytest.mark.parametrize("shape", [(6,), (4, 3, 3)])  # a linear layer, and a convolution
def test_it_is_that_of_the_dense_products(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(2)
    last = (1,) * (len(shape) - 1)
    updates = [
        update(str(n), random.normal(size=(3, *shape)), random.normal(size=(5, 3, *last)), n + 1)
        for n in range(4)
    ]
    of_a = [one.arrays[A].astype(np.float64).reshape(3, -1) for one in updates]
    of_b = [one.arrays[B].astype(np.float64).reshape(-1, 3) for one in updates]
    weights = [one.num_examples for one in updates]
    whole = np.average([b @ a for a, b in zip(of_a, of_b, strict=True)], axis=0, weights=weights)
    apart = np.average(of_b, axis=0, weights=weights) @ np.average(of_a, axis=0, weights=weights)
    expected = np.linalg.norm(whole - apart) / np.linalg.norm(whole)
    assert adapter_gaps(updates, by_examples) == {"q": pytest.approx(expected, rel=1e-12)}
