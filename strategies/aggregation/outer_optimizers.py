"""What the coordinator does with the averaged update: small optimizers, state in and state out.

With ``w`` the global model and ``m`` the weighted mean of the sites' models, the averaged update
is ``delta = m - w``, and an outer optimizer takes the pseudo-gradient ``g = -delta`` as
`torch.optim` takes a gradient (Reddi et al., ICLR 2021, "Adaptive Federated Optimization").

It moves the trainable float parameters. Everything else, BatchNorm's running statistics and
counters, is averaged plainly: a momentum of statistics has no meaning, and a variance that
overshoots may be negative. One array is in work at a time, in float64; the result has the array's
own dtype. The state is named arrays, ``SLOT/ARRAY``, kept in the array's dtype but at least in
float32, and the number of steps: all that a checkpoint needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.averaging import Arrays, Update, Weighting, weighted_mean

Floats = NDArray[np.float64]

STEPS = "steps"
"""Name in the state under which the steps so far are counted."""


class OuterOptimizer(Protocol):
    """Makes the next global model, array by array."""

    @property
    def slots(self) -> Sequence[str]:
        """Return the names of what is remembered of each array; zero before the first step."""
        ...

    def step(
        self, before: Floats, mean: Floats, memory: Sequence[Floats], number: int
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return one array of the next global model, and its memory.

        Parameters
        ----------
        before, mean
            The array in the global model, and averaged over the sites.
        memory
            What was remembered of it, in the order of the slots.
        number
            Number of the step, from 1.
        """
        ...


@dataclass(frozen=True)
class Average:
    """The mean itself is the next global model, to the bit: FedAvg, and co-learning."""

    @property
    def slots(self) -> Sequence[str]:
        """Return nothing: there is no memory."""
        return ()

    def step(
        self, before: Floats, mean: Floats, memory: Sequence[Floats], number: int
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return the mean."""
        return mean, ()


@dataclass(frozen=True)
class Momentum:
    """SGD on the pseudo-gradient, as `torch.optim.SGD` has it with dampening 0.

    ``b = momentum * b + g``; then ``w = w - lr * b``, or with Nesterov's momentum
    ``w = w - lr * (g + momentum * b)``. With lr 1 and momentum 0 this is `Average`.

    FedAvgM (Hsu, Qi, Brown, 2019, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification") is this with lr 1. With Nesterov, lr 0.7 and momentum 0.9 it
    is the outer optimizer of DiLoCo (Douillard et al., 2023, "DiLoCo: Distributed
    Low-Communication Training of Language Models").
    """

    lr: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False

    @property
    def slots(self) -> Sequence[str]:
        """Return the one buffer; none without momentum."""
        return ("momentum",) if self.momentum else ()

    def step(
        self, before: Floats, mean: Floats, memory: Sequence[Floats], number: int
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return the array after a step along the buffer."""
        gradient = before - mean
        if not self.momentum:
            return before - self.lr * gradient, ()
        buffer = self.momentum * memory[0] + gradient
        direction = gradient + self.momentum * buffer if self.nesterov else buffer
        return before - self.lr * direction, (buffer,)


@dataclass(frozen=True)
class Adam:
    """Adam on the pseudo-gradient, as `torch.optim.Adam` has it: with bias correction.

    In step ``t``, from 1: ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``, both
    0 before the first, and ``w = w - lr * m' / (sqrt(v') + epsilon)`` with
    ``m' = m / (1 - beta1^t)`` and ``v' = v / (1 - beta2^t)``.

    FedAdam (Reddi et al., ICLR 2021, algorithm 2) with two deviations: it has no bias correction,
    and its ``v`` begins at the square of its ``tau`` or above, where ours begins at 0 and is
    corrected. Its ``tau`` is ``epsilon``; the values that it suggests are the defaults.

    A step moves a weight by up to about ``lr``, whatever the size of the update, so that 1 is far
    too much for weights of 0.05. The default is of the order that the paper's tuning (appendix D)
    finds for FedAdam, and is what this project's arm ``fedadam`` names.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    @property
    def slots(self) -> Sequence[str]:
        """Return the two moments."""
        return ("first-moment", "second-moment")

    def step(
        self, before: Floats, mean: Floats, memory: Sequence[Floats], number: int
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return the array after a step along the ratio of the moments."""
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
    """Fold updates, in site order, into the next global model; return it and the next state.

    Parameters
    ----------
    outer
        What is done with the averaged update.
    state
        Of the steps before; empty before the first.
    before
        The global model, in the order of the result's arrays.
    updates, weighting
        See `weighted_mean`; its errors are raised here, too.
    trainable
        Names of the trainable float parameters.
    """
    number = int(state[STEPS]) + 1 if STEPS in state else 1
    after: dict[str, NDArray[np.generic]] = {STEPS: np.array(number)} if outer.slots else {}

    def advance(name: str, mean: Floats) -> Floats:
        if name not in trainable:
            return mean
        keys = [f"{slot}/{name}" for slot in outer.slots]
        memory = [
            np.zeros_like(mean) if number == 1 else state[key].astype(np.float64) for key in keys
        ]
        array, remembered = outer.step(before[name].astype(np.float64), mean, memory, number)
        kept_in = np.result_type(before[name].dtype, np.float32)
        for key, values in zip(keys, remembered, strict=True):
            # asarray: arithmetic makes numbers of arrays without a dimension.
            after[key] = np.asarray(values, dtype=kept_in)
        return array

    return weighted_mean(updates, weighting, before, advance), after
