"""Controllers that choose the number of local epochs of the next round, with explicit state.

A controller never sees a model. Its inputs are one number, the relative change of the global model
over a round, and its own previous state. The state is plain data, so a checkpoint can store it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.method.round_plan import cosine


@dataclass(frozen=True)
class EpochState:
    """Progress of a run, in rounds and local epochs.

    Attributes
    ----------
    local_epochs : int
        Local epochs that the controller chose for the next round, before the budget is applied.
    epochs_used : int
        Sum of the local epochs of all finished rounds.
    rounds_done : int
        Number of finished rounds.
    """

    local_epochs: int
    epochs_used: int = 0
    rounds_done: int = 0


class EpochController(Protocol):
    """Chooses the number of local epochs of each round."""

    def start(self) -> EpochState:
        """Return the state before round 1."""
        ...

    def after_round(self, state: EpochState, relative_change: float | None) -> EpochState:
        """Return the state for the next round.

        ``state`` already counts the finished round; ``relative_change`` is None if unknown. A
        resumed run calls this again with None, because the settings of the controller, such as the
        budget, may have changed. If they have not, the result must equal ``state``.
        """
        ...


@dataclass(frozen=True)
class Fixed:
    """The same number of local epochs in every round, as in FedAvg."""

    local_epochs: int

    def start(self) -> EpochState:
        """Return the state before round 1."""
        return EpochState(self.local_epochs)

    def after_round(self, state: EpochState, relative_change: float | None) -> EpochState:
        """Return the state unchanged."""
        return state


@dataclass(frozen=True)
class IncreasedLocalEpochs:
    """ILE: double the local epochs once the global model has settled.

    If ``||w_i - w_{i-1}|| / ||w_{i-1}|| <= epsilon`` then ``T_{i+1} = 2 T_i``, else
    ``T_{i+1} = T_i``; never above ``maximum``. The rule is this project's reconstruction of the
    strategy named in the abstract of arXiv 1810.06877, not a quotation from the paper.
    """

    initial: int
    epsilon: float
    maximum: int

    def start(self) -> EpochState:
        """Return the state before round 1."""
        return EpochState(min(self.initial, self.maximum))

    def after_round(self, state: EpochState, relative_change: float | None) -> EpochState:
        """Double the local epochs, up to the maximum, if the change is at most epsilon."""
        settled = relative_change is not None and relative_change <= self.epsilon
        if not settled:
            return state
        return replace(state, local_epochs=min(2 * state.local_epochs, self.maximum))


@dataclass(frozen=True)
class Spread:
    """A budget of epochs spread evenly over a given number of rounds.

    After ``e`` of ``E`` epochs and ``r`` of ``R`` rounds, the next round gets
    ``floor((E - e) / (R - r))`` epochs. So rounds differ by at most one epoch and sum to ``E``
    exactly, even if the budget or the number of rounds changes during the run.
    """

    epoch_budget: int
    num_rounds: int

    def start(self) -> EpochState:
        """Return the state before round 1."""
        return EpochState(self.epoch_budget // self.num_rounds)

    def after_round(self, state: EpochState, relative_change: float | None) -> EpochState:
        """Divide the remaining budget by the remaining rounds."""
        rounds_left = self.num_rounds - state.rounds_done
        if rounds_left <= 0:
            return state
        share = (self.epoch_budget - state.epochs_used) // rounds_left
        return replace(state, local_epochs=max(1, share))


@dataclass(frozen=True)
class QuadraticSynchronization:
    """QSR: the lower the learning rate, the longer the round.

    ``T = max(base, floor((alpha / lr)^2))``, but at most the remaining budget. ``lr`` is the
    learning rate at the start of the round, under one cosine over the whole run (Gu, Lyu, Arora,
    Zhang, Huang, ICLR 2024, "A Quadratic Synchronization Rule for Distributed Deep Learning").

    The paper counts local steps. Here rounds and budgets are counted in local epochs, so that sites
    with little and with much data can have the same number: ``T`` and ``base`` are epochs,
    ``alpha`` is in units of lr times the square root of epochs, and the floor is taken in epochs.
    If an epoch has ``K`` steps at every site, the paper's ``alpha`` is ``sqrt(K)`` times this one.

    Attributes
    ----------
    base : int
        Smallest number of epochs in a round, >= 1.
    alpha : float
        Growth coefficient, > 0.
    lr_max, lr_min : float
        Learning rate at the start and at the end of the cosine.
    epoch_budget : int
        Length of the cosine, in epochs.
    """

    base: int
    alpha: float
    lr_max: float
    lr_min: float
    epoch_budget: int

    def start(self) -> EpochState:
        """Return the state before round 1."""
        return EpochState(self._epochs(0))

    def after_round(self, state: EpochState, relative_change: float | None) -> EpochState:
        """Compute the local epochs from the learning rate; the relative change is ignored."""
        if state.epochs_used >= self.epoch_budget:
            return state  # the cosine may have reached 0
        return replace(state, local_epochs=self._epochs(state.epochs_used))

    def _epochs(self, used: int) -> int:
        ratio = self.alpha / cosine(self.lr_max, self.lr_min, used / self.epoch_budget)
        return min(self.epoch_budget - used, max(self.base, math.floor(ratio * ratio)))


@dataclass(frozen=True)
class Horizon:
    """When a run ends: after ``num_rounds`` rounds or ``epoch_budget`` local epochs.

    None means no limit. The limit that is reached first ends the run.
    """

    num_rounds: int | None
    epoch_budget: int | None

    def finished(self, state: EpochState) -> bool:
        """Return whether the run is over."""
        rounds_over = self.num_rounds is not None and state.rounds_done >= self.num_rounds
        budget_over = self.epoch_budget is not None and state.epochs_used >= self.epoch_budget
        return rounds_over or budget_over

    def fit(self, state: EpochState) -> int:
        """Return the local epochs of the next round, limited to the remaining budget."""
        if self.epoch_budget is None:
            return state.local_epochs
        return min(state.local_epochs, self.epoch_budget - state.epochs_used)


def count_round(state: EpochState, epochs: int) -> EpochState:
    """Return the state after one more round of ``epochs`` local epochs."""
    return replace(state, epochs_used=state.epochs_used + epochs, rounds_done=state.rounds_done + 1)


def relative_change(
    before: Mapping[str, NDArray[np.generic]],
    after: Mapping[str, NDArray[np.generic]],
    names: frozenset[str],
) -> float:
    """Return ``||after - before|| / ||before||`` over the named arrays, in float64.

    Parameters
    ----------
    before, after
        Global model before and after a round; any float dtype.
    names
        The trainable float parameters. Running statistics and counters do not show whether the
        weights have settled.

    Returns
    -------
    float
        0 if nothing changed; infinity if ``before`` is all zero and ``after`` is not.
    """
    moved, size = 0.0, 0.0
    for name in sorted(names):
        old = before[name].astype(np.float64)
        moved += float(np.sum((after[name].astype(np.float64) - old) ** 2))
        size += float(np.sum(old**2))
    if moved == 0.0:
        return 0.0
    return float(np.sqrt(moved / size)) if size > 0.0 else float("inf")
