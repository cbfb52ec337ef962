"""Outer optimizers: hand-computed values, invariants, and torch.optim over several rounds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from strategies.aggregation.averaging import Arrays, Update, by_examples, uniform, weighted_mean
from strategies.aggregation.outer_optimizers import (
    STEPS,
    Adam,
    Average,
    Momentum,
    OuterOptimizer,
    next_model,
)

ALL: list[OuterOptimizer] = [
    Average(),
    Momentum(0.7),
    Momentum(0.7, 0.9, nesterov=True),
    Momentum(0.5, 0.0),
    Adam(0.1),
]
SHAPES: dict[str, tuple[int, ...]] = {"w": (3, 4), "scalar": (), "empty": (0, 2)}


def sites_of(*models: Arrays) -> list[Update]:
    return [Update(f"site-{i}", i + 1, arrays, {}) for i, arrays in enumerate(models)]


def model(dtype: str, seed: int, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(scale * generator.standard_normal(shape), dtype)
        for name, shape in SHAPES.items()
    }


def step(
    outer: OuterOptimizer, state: Arrays, before: Arrays, *models: Arrays
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    return next_model(outer, state, before, sites_of(*models), by_examples, frozenset(before))


def values(outer: OuterOptimizer, deltas: Sequence[float], start: float = 10.0) -> list[float]:
    """Return a one-number model after each round; the only site adds a delta in each round."""
    w: dict[str, NDArray[Any]] = {"w": np.array([start])}
    state: Arrays = {}
    found = []
    for delta in deltas:
        w, state = step(outer, state, w, {"w": w["w"] + delta})
        found.append(float(w["w"][0]))
    return found


def test_adam_by_default_moves_a_weight_a_little_in_a_round() -> None:
    (after,) = values(Adam(), [0.02], start=0.05)
    assert 0.05 < after < 0.06


def test_momentum_by_hand() -> None:
    # g = -1, -1, 0; b = -1, -1.5, -0.75; w = 10 + 2, + 3, + 1.5.
    assert values(Momentum(2.0, 0.5), [1.0, 1.0, 0.0]) == [12.0, 15.0, 16.5]


def test_nesterov_by_hand() -> None:
    # g + 0.5 b = -1.5, -1.75, -0.375; w = 10 + 3, + 3.5, + 0.75.
    assert values(Momentum(2.0, 0.5, nesterov=True), [1.0, 1.0, 0.0]) == [13.0, 16.5, 17.25]


def test_without_momentum_a_step_is_a_share_of_the_update() -> None:
    assert values(Momentum(0.25, 0.0), [4.0, 8.0]) == [11.0, 13.0]


def test_adams_first_step_is_its_learning_rate_whatever_the_size_of_the_update() -> None:
    # m' = g and v' = g^2, so w moves by lr * g / (|g| + 0).
    for delta in (1e-3, 1.0, 1e3):
        (value,) = values(Adam(0.5, epsilon=0.0), [delta])
        assert value == pytest.approx(10.5, rel=1e-12)


def test_adams_epsilon_stands_beside_the_corrected_root() -> None:
    # With epsilon = |g| the step is half of the learning rate.
    assert values(Adam(1.0, epsilon=3.0), [3.0]) == pytest.approx([10.5], rel=1e-12)


@pytest.mark.parametrize(
    ("outer", "oracle", "options"),
    [
        (Momentum(1.0, 0.9), torch.optim.SGD, {"lr": 1.0, "momentum": 0.9}),
        (
            Momentum(0.7, 0.9, nesterov=True),
            torch.optim.SGD,
            {"lr": 0.7, "momentum": 0.9, "nesterov": True},
        ),
        (Momentum(0.3, 0.0), torch.optim.SGD, {"lr": 0.3}),
        (
            Adam(0.03, 0.8, 0.95, 1e-2),
            torch.optim.Adam,
            {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-2},
        ),
        (Adam(0.1), torch.optim.Adam, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3}),
    ],
    ids=repr,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
def test_ten_rounds_are_those_of_torch_optim_on_the_same_pseudo_gradients(
    outer: OuterOptimizer, oracle: Any, options: dict[str, Any], dtype: str, tolerance: float
) -> None:
    ours: dict[str, NDArray[Any]] = model(dtype, 0)
    parameters = {name: torch.nn.Parameter(torch.from_numpy(a.copy())) for name, a in ours.items()}
    optimizer = oracle(parameters.values(), **options)
    state: Arrays = {}
    for number in range(1, 11):
        sites = [
            {name: np.asarray(ours[name] + d) for name, d in model(dtype, 10 * number + i).items()}
            for i in range(3)
        ]
        mean = weighted_mean(sites_of(*sites), by_examples)
        for name, parameter in parameters.items():
            gradient = np.asarray(ours[name] - mean[name])
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        ours, state = step(outer, state, ours, *sites)
        for name, parameter in parameters.items():
            np.testing.assert_allclose(
                ours[name], parameter.detach().numpy(), rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_plain_average_is_the_weighted_mean_to_the_bit_and_has_no_state(dtype: str) -> None:
    before, sites = model(dtype, 0), [model(dtype, 1, 1e3), model(dtype, 2, 1e-3), model(dtype, 3)]
    after, state = step(Average(), {}, before, *sites)
    mean = weighted_mean(sites_of(*sites), by_examples)
    assert {n: a.tobytes() for n, a in after.items()} == {n: a.tobytes() for n, a in mean.items()}
    assert state == {}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_first_step_with_learning_rate_1_is_the_plain_average(momentum: float) -> None:
    before, sites = model("float32", 0), [model("float32", 1), model("float32", 2)]
    plain, _ = step(Average(), {}, before, *sites)
    after, state = step(Momentum(1.0, momentum), {}, before, *sites)
    for name in SHAPES:
        np.testing.assert_allclose(after[name], plain[name], rtol=1e-7)
    assert bool(state) == bool(momentum)


@pytest.mark.parametrize("outer", ALL, ids=repr)
def test_sites_that_return_the_model_as_it_was_leave_it_as_it_was(outer: OuterOptimizer) -> None:
    before = model("float32", 0)
    after, _ = step(outer, {}, before, before, before)
    assert {n: a.tobytes() for n, a in after.items()} == {n: a.tobytes() for n, a in before.items()}


@pytest.mark.parametrize("outer", ALL, ids=repr)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes_shapes_and_order_are_the_models_and_the_state_is_no_coarser_than_float32(
    outer: OuterOptimizer, dtype: str
) -> None:
    before = model(dtype, 0)
    after, state = step(outer, {}, before, model(dtype, 1), model(dtype, 2))
    after, state = step(outer, state, after, model(dtype, 3), model(dtype, 4))
    assert [(n, a.dtype, a.shape) for n, a in after.items()] == [
        (n, a.dtype, a.shape) for n, a in before.items()
    ]
    kept = "float64" if dtype == "float64" else "float32"
    assert {key: (str(a.dtype), a.shape) for key, a in state.items() if key != STEPS} == {
        f"{slot}/{name}": (kept, shape) for slot in outer.slots for name, shape in SHAPES.items()
    }
    assert outer.slots == () or state[STEPS] == 2


@pytest.mark.parametrize("outer", ALL, ids=repr)
def test_statistics_and_counters_are_averaged_plainly(outer: OuterOptimizer) -> None:
    before: dict[str, NDArray[Any]] = {
        "w": np.zeros(2, np.float32),
        "bn.running_var": np.full(2, 4.0, np.float32),
        "bn.num_batches_tracked": np.array(1),
    }
    sites = [{name: np.asarray(a + i, a.dtype) for name, a in before.items()} for i in (1, 3)]
    state: Arrays = {}
    after: Arrays = before
    for _ in range(3):
        after, state = next_model(outer, state, after, sites_of(*sites), uniform, frozenset("w"))
        assert after["bn.running_var"].tolist() == [6.0, 6.0]  # (5 + 7) / 2
        assert after["bn.num_batches_tracked"] == 2
    assert not any("bn" in key for key in state)


@pytest.mark.parametrize("outer", ALL, ids=repr)
def test_neither_model_updates_nor_state_are_changed(outer: OuterOptimizer) -> None:
    before, one = model("float64", 0), model("float64", 1)
    after, state = step(outer, {}, before, one)
    kept = [{n: a.tobytes() for n, a in arrays.items()} for arrays in (before, one, after, state)]
    step(outer, state, after, one)
    now = [{n: a.tobytes() for n, a in arrays.items()} for arrays in (before, one, after, state)]
    assert now == kept


def test_a_state_that_lacks_an_array_is_not_taken_for_a_new_one() -> None:
    before = model("float32", 0)
    after, state = step(Momentum(1.0), {}, before, model("float32", 1))
    del state["momentum/w"]
    with pytest.raises(KeyError, match="momentum/w"):
        step(Momentum(1.0), state, after, model("float32", 2))
