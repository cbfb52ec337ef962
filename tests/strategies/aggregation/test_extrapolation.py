"""FedExP: its step by hand, and what it has in common with averaging."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.aggregation.averaging import Update, by_examples, uniform, weighted_mean
from strategies.aggregation.extrapolation import FedExP
from strategies.aggregation.outer_optimizers import next_model

Model = dict[str, NDArray[Any]]
BEFORE: Model = {"a": np.array([1.0, 2.0]), "b": np.array([[3.0]])}
TRAINABLE = frozenset(BEFORE)


def moved(*changes: float) -> Model:
    """Return the model after it moved by a change of each of its three numbers."""
    return {"a": BEFORE["a"] + changes[:2], "b": BEFORE["b"] + changes[2]}


def sites(*models: Model) -> list[Update]:
    return [Update(f"site-{i}", 1 + 2 * i, arrays, {}) for i, arrays in enumerate(models)]


def step_of(*models: Model, epsilon: float = 0.0, weighting: Any = uniform) -> float:
    outer = FedExP(epsilon).step_of(BEFORE, sites(*models), weighting, TRAINABLE)
    assert outer.momentum == 0
    return outer.lr


def test_the_step_by_hand() -> None:
    # Updates 6, 6 and 6 on three axes: their mean square is 36, that of the mean 3 * 2^2 = 12.
    assert step_of(moved(6, 0, 0), moved(0, 6, 0), moved(0, 0, 6)) == 36 / (2 * 12)
    assert step_of(moved(6, 0, 0), moved(0, 6, 0), moved(0, 0, 6), epsilon=3.0) == 36 / (2 * 15)


def test_the_step_is_weighted_like_the_average() -> None:
    # Weights 1/4 and 3/4. Updates 8 and 8 on two axes: mean (2, 6), squares 64 and 40.
    lr = step_of(moved(8, 0, 0), moved(0, 8, 0), weighting=by_examples)
    assert lr == max(1.0, 64 / 80)
    # Updates 8 and -4: mean (2 - 3) = -1; squares 1/4 * 64 + 3/4 * 16 = 28 and 1.
    assert step_of(moved(8, 0, 0), moved(-4, 0, 0), weighting=by_examples) == 14.0


def test_equal_updates_are_not_extrapolated() -> None:
    assert step_of(moved(1, 2, 3), moved(1, 2, 3)) == 1.0


def test_models_that_did_not_move_are_not_divided_by_zero() -> None:
    assert step_of(moved(0, 0, 0), moved(0, 0, 0)) == 1.0


def test_updates_that_cancel_out_move_nothing() -> None:
    updates = sites(moved(5, 0, 0), moved(-5, 0, 0))
    outer = FedExP(1e-3).step_of(BEFORE, updates, uniform, TRAINABLE)
    after, _ = next_model(outer, {}, BEFORE, updates, uniform, TRAINABLE)
    assert {name: array.tolist() for name, array in after.items()} == {
        name: array.tolist() for name, array in BEFORE.items()
    }


def test_only_trainable_arrays_count_and_are_extrapolated() -> None:
    # The mean of a is 2: (36 + 4) / 2 / (2 * 4) = 2.5, so it moves by 5. The mean of b is 5.
    updates, trainable = sites(moved(6, 0, 9), moved(-2, 0, 1)), frozenset({"a"})
    outer = FedExP(0.0).step_of(BEFORE, updates, uniform, trainable)
    assert outer.lr == 2.5
    after, state = next_model(outer, {}, BEFORE, updates, uniform, trainable)
    assert (after["a"].tolist(), after["b"].tolist()) == ([6.0, 2.0], [[8.0]])
    assert not state, "there is nothing to remember"


def test_a_step_of_one_is_the_mean_of_the_models() -> None:
    updates = sites(moved(1, 2, 3), moved(1, 2, 4))
    outer = FedExP().step_of(BEFORE, updates, by_examples, TRAINABLE)
    after, _ = next_model(outer, {}, BEFORE, updates, by_examples, TRAINABLE)
    for name, array in weighted_mean(updates, by_examples).items():
        assert after[name] == pytest.approx(array, rel=1e-15)
