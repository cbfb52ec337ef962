"""FedExP: the more the sites' updates differ, the larger the step that the coordinator takes.

Jhunjhunwala, Wang, Joshi, ICLR 2023, "FedExP: Speeding up Federated Averaging via Extrapolation".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strategies.aggregation.averaging import Arrays, Floats, Update, Weighting, weighted_mean
from strategies.aggregation.outer_optimizers import Momentum
from strategies.common.blocks import blocks


@dataclass(frozen=True)
class FedExP:
    """A step along the averaged update, whose length the updates themselves determine.

    With ``p_i`` the weight of site ``i`` in the average and ``d_i`` its update, the next model is
    ``w + lr * mean`` with ``mean = sum p_i d_i`` and
    ``lr = max(1, sum p_i ||d_i||^2 / (2 (||mean||^2 + epsilon)))``. The paper has equal weights.
    The norms are over the trainable float parameters.

    Attributes
    ----------
    epsilon : float
        Bounds the step if the updates cancel out, >= 0; in units of a squared norm.
    """

    epsilon: float = 1e-3

    def step_of(
        self,
        before: Arrays,
        updates: Sequence[Update],
        weighting: Weighting,
        trainable: frozenset[str],
    ) -> Momentum:
        """Return the outer optimizer that takes this round's step."""
        mean_squares = sum(
            weighting(update) * _squared_distance(before, update.arrays, trainable)
            for update in updates
        ) / sum(map(weighting, updates))
        moved = _squared_step(before, updates, weighting, trainable)
        if moved + self.epsilon == 0.0:
            return Momentum(1.0, 0.0)
        return Momentum(max(1.0, mean_squares / (2 * (moved + self.epsilon))), 0.0)


def _squared_distance(before: Arrays, after: Arrays, names: frozenset[str]) -> float:
    total = 0.0
    for name in sorted(names):
        old, new = before[name].reshape(-1), after[name].reshape(-1)
        for block in blocks(old.size):
            change = np.subtract(new[block], old[block], dtype=np.float64)
            total += float(np.sum(np.square(change)))
    return total


def _squared_step(
    before: Arrays, updates: Sequence[Update], weighting: Weighting, names: frozenset[str]
) -> float:
    """Return the squared norm of the averaged update, without the whole of it in memory."""
    total = 0.0

    def add(name: str, block: slice, mean: Floats) -> Floats:
        nonlocal total
        old = before[name].reshape(-1)[block].astype(np.float64)
        total += float(np.sum(np.square(mean - old)))
        return mean

    for name in sorted(names):
        weighted_mean(updates, weighting, [name], add)
    return total
