"""Outer optimizers: how the coordinator applies the averaged update, with explicit state.

With ``w`` the global model and ``m`` the weighted mean of the sites' models, the averaged update
is ``delta = m - w``. An outer optimizer uses the pseudo-gradient ``g = -delta`` as `torch.optim`
uses a gradient (Reddi et al., ICLR 2021, "Adaptive Federated Optimization").

An outer optimizer changes only the trainable float parameters. BatchNorm's running statistics and
counters are not optimized but averaged: momentum on statistics has no meaning, and a variance that
overshoots may become negative. Arrays are processed in blocks, in float64; each result has the
array's own dtype. The state, which checkpoints store, consists of arrays named ``SLOT/ARRAY``, in
the array's dtype but at least float32, and the number of steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.averaging import Arrays, Floats, Update, Weighting, weighted_mean

STEPS = "steps"
"""Key in the state for the number of steps so far."""


class OuterOptimizer(Protocol):
    """Computes the next global model, block by block; no value depends on another one."""

    @property
    def slots(self) -> Sequence[str]:
        """Return the names of the state arrays per model array; all zero before the first step."""
        ...

    def step(
        self, before: Floats, mean: Floats, memory: Sequence[Floats], number: int
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return a block of an array of the next global model, and its new state.

        Parameters
        ----------
        before, mean
            The array in the global model, and its average over the sites.
        memory
            The state of the array, in the order of the slots.
        number
            Number of the step, starting at 1.
        """
        ...


@dataclass(frozen=True)
class Average:
    """Use the mean itself as the next global model, bit for bit, as in FedAvg and co-learning."""

    @property
    def slots(self) -> Sequence[str]:
        """Return no slots: there is no state."""
        return ()

    def step(
        self, before: Floats, mean: Floats, memory: Sequence[Floats], number: int
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return the mean."""
        return mean, ()


@dataclass(frozen=True)
class Momentum:
    """SGD on the pseudo-gradient, like `torch.optim.SGD` with dampening 0.

    ``b = momentum * b + g``; then ``w = w - lr * b``, or with Nesterov momentum
    ``w = w - lr * (g + momentum * b)``. With lr 1 and momentum 0 this equals `Average`.

    With lr 1 this is FedAvgM (Hsu, Qi, Brown, 2019, "Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification"). With Nesterov momentum 0.9 and lr 0.7 it is
    the outer optimizer of DiLoCo (Douillard et al., 2023, "DiLoCo: Distributed Low-Communication
    Training of Language Models").
    """

    lr: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False

    @property
    def slots(self) -> Sequence[str]:
        """Return the name of the momentum buffer; none if momentum is 0."""
        return ("momentum",) if self.momentum else ()

    def step(
        self, before: Floats, mean: Floats, memory: Sequence[Floats], number: int
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return the array after one step, and the momentum buffer."""
        gradient = before - mean
        if not self.momentum:
            return before - self.lr * gradient, ()
        buffer = self.momentum * memory[0] + gradient
        direction = gradient + self.momentum * buffer if self.nesterov else buffer
        return before - self.lr * direction, (buffer,)


def momentum_for(num_rounds: int) -> float:
    """Return the outer momentum that suits a number of rounds: ``1 - sqrt(2 / num_rounds)``.

    With more rounds, each update counts for less, and the momentum may average over more of them.
    0 for two rounds or fewer. The formula is this project's own.
    """
    return max(0.0, 1.0 - math.sqrt(2.0 / num_rounds))


@dataclass(frozen=True)
class Adam:
    """Adam on the pseudo-gradient, like `torch.optim.Adam`, with bias correction.

    In step ``t``, starting at 1: ``m = beta1 m + (1 - beta1) g`` and
    ``v = beta2 v + (1 - beta2) g^2``, both 0 before the first step. Then
    ``w = w - lr * m' / (sqrt(v') + epsilon)`` with ``m' = m / (1 - beta1^t)`` and
    ``v' = v / (1 - beta2^t)``.

    This differs from FedAdam (Reddi et al., ICLR 2021, algorithm 2) in two ways: the paper has no
    bias correction, and its ``v`` starts at ``tau^2`` or above, while here ``v`` starts at 0 and is
    corrected. ``epsilon`` is the paper's ``tau``; the defaults are the values that it suggests.

    A step changes a weight by up to about ``lr``, whatever the size of the update, so 1 is far too
    large for weights of 0.05. The default ``lr`` has the order of magnitude that the paper's tuning
    (appendix D) finds for FedAdam; this project's arm ``fedadam`` uses it.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    @property
    def slots(self) -> Sequence[str]:
        """Return the names of the two moments."""
        return ("first-moment", "second-moment")

    def step(
        self, before: Floats, mean: Floats, memory: Sequence[Floats], number: int
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return the array after one step, and the moments."""
        gradient = before - mean
        first = self.beta1 * memory[0] + (1 - self.beta1) * gradient
        second = self.beta2 * memory[1] + (1 - self.beta2) * gradient**2
        corrected = first / (1 - self.beta1**number)
        scale = np.sqrt(second / (1 - self.beta2**number)) + self.epsilon
        return before - self.lr * corrected / scale, (first, second)


def next_model(
    outer: OuterOptimizer,
    state: Arrays,
    before: Arrays,
    updates: Sequence[Update],
    weighting: Weighting,
    trainable: frozenset[str],
) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]:
    """Average updates, in site order, and return the next global model and the next state.

    Parameters
    ----------
    outer
        The outer optimizer, applied to the averaged update.
    state
        State after the previous step; empty before the first.
    before
        The global model. Its order of arrays is kept.
    updates, weighting
        See `weighted_mean`, including its errors.
    trainable
        Names of the trainable float parameters.
    """
    number = int(state[STEPS]) + 1 if STEPS in state else 1
    after: dict[str, NDArray[np.generic]] = {STEPS: np.array(number)} if outer.slots else {}

    def advance(name: str, block: slice, mean: Floats) -> Floats:
        if name not in trainable:
            return mean
        keys = [f"{slot}/{name}" for slot in outer.slots]
        memory = [
            np.zeros_like(mean) if number == 1 else state[key].reshape(-1)[block].astype(np.float64)
            for key in keys
        ]
        whole = before[name]
        old = whole.reshape(-1)[block].astype(np.float64)
        array, remembered = outer.step(old, mean, memory, number)
        for key, values in zip(keys, remembered, strict=True):
            if key not in after:
                after[key] = np.empty(whole.shape, np.result_type(whole.dtype, np.float32))
            after[key].reshape(-1)[block] = values
        return array

    return weighted_mean(updates, weighting, before, advance), after
