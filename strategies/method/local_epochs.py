"""How many local epochs the next round has: small controllers, state in and state out.

A controller never sees a model. It sees one number, the relative change of the global model
over a round, and its own last state; the state is plain data, so a checkpoint can hold it.
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
    """Where a run stands.

    Attributes
    ----------
    local_epochs : int
        Epochs the controller wants for the coming round, before the budget is applied.
    epochs_used : int
        Local epochs of all finished rounds.
    rounds_done : int
        Finished rounds.
    """

    local_epochs: int
    epochs_used: int = 0
    rounds_done: int = 0


class EpochController(Protocol):
    """Decides the local epochs of each round."""

    def start(self) -> EpochState:
        """Return the state before round 1."""
        ...

    def after_round(self, state: EpochState, relative_change: float | None) -> EpochState:
        """Return the state for the next round.

        ``state`` has the finished round counted already; ``relative_change`` is None when
        it is not known. A run that goes on asks again, without a change, because what the
        controller goes by, such as the budget, may be another now: for the same controller the
        answer must be the state itself.
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
        """Change nothing."""
        return state


@dataclass(frozen=True)
class IncreasedLocalEpochs:
    """ILE: double the local epochs once the global model has settled.

    If ``||w_i - w_{i-1}|| / ||w_{i-1}|| <= epsilon`` then ``T_{i+1} = 2 T_i``, else
    ``T_{i+1} = T_i``; never above ``maximum``. The law is this project's reconstruction of
    the strategy named in the abstract of arXiv 1810.06877, not a quotation of the paper.
    """

    initial: int
    epsilon: float
    maximum: int

    def start(self) -> EpochState:
        """Return the state before round 1."""
        return EpochState(min(self.initial, self.maximum))

    def after_round(self, state: EpochState, relative_change: float | None) -> EpochState:
        """Double, capped, when the change is known to be at most epsilon."""
        settled = relative_change is not None and relative_change <= self.epsilon
        if not settled:
            return state
        return replace(state, local_epochs=min(2 * state.local_epochs, self.maximum))


@dataclass(frozen=True)
class Spread:
    """A budget of epochs spread evenly over a given number of rounds.

    With ``e`` of ``E`` epochs and ``r`` of ``R`` rounds done, the next round gets
    ``floor((E - e) / (R - r))``, so that the rounds differ by at most one epoch and sum to
    ``E`` exactly, also where budget or rounds were changed on the way.
    """

    epoch_budget: int
    num_rounds: int

    def start(self) -> EpochState:
        """Return the state before round 1."""
        return EpochState(self.epoch_budget // self.num_rounds)

    def after_round(self, state: EpochState, relative_change: float | None) -> EpochState:
        """Move to the next share of what is left of the budget."""
        rounds_left = self.num_rounds - state.rounds_done
        if rounds_left <= 0:
            return state
        share = (self.epoch_budget - state.epochs_used) // rounds_left
        return replace(state, local_epochs=max(1, share))


@dataclass(frozen=True)
class QuadraticSynchronization:
    """QSR: the lower the learning rate, the longer the round.

    ``T = max(base, floor((alpha / lr)^2))``, with ``lr`` the learning rate at the start of the
    round under one cosine over the whole run, and never more than is left of the budget (Gu, Lyu,
    Arora, Zhang, Huang, ICLR 2024, "A Quadratic Synchronization Rule for Distributed Deep
    Learning").

    The paper counts local steps. Here rounds and budgets are counted in local epochs, which sites
    with little and with much data can have in common: ``T`` and ``base`` are epochs, ``alpha`` is
    in units of lr times the root of an epoch, and the floor is taken in epochs. Where an epoch
    has ``K`` steps at every site, the paper's ``alpha`` is ``sqrt(K)`` times this one.

    Attributes
    ----------
    base : int
        Fewest epochs of a round, >= 1.
    alpha : float
        Growth coefficient, > 0.
    lr_max, lr_min : float
        Ends of the cosine.
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
        """Follow the learning rate, whatever has changed in the model."""
        if state.epochs_used >= self.epoch_budget:
            return state  # the cosine may be at 0
        return replace(state, local_epochs=self._epochs(state.epochs_used))

    def _epochs(self, used: int) -> int:
        ratio = self.alpha / cosine(self.lr_max, self.lr_min, used / self.epoch_budget)
        return min(self.epoch_budget - used, max(self.base, math.floor(ratio * ratio)))


@dataclass(frozen=True)
class Horizon:
    """When a run ends: after ``num_rounds``, or when ``epoch_budget`` local epochs are used.

    None means that this limit is not set; whichever is reached first ends the run.
    """

    num_rounds: int | None
    epoch_budget: int | None

    def finished(self, state: EpochState) -> bool:
        """Return whether no further round is due."""
        rounds_over = self.num_rounds is not None and state.rounds_done >= self.num_rounds
        budget_over = self.epoch_budget is not None and state.epochs_used >= self.epoch_budget
        return rounds_over or budget_over

    def fit(self, state: EpochState) -> int:
        """Return the coming round's local epochs, cut to what is left of the budget."""
        if self.epoch_budget is None:
            return state.local_epochs
        return min(state.local_epochs, self.epoch_budget - state.epochs_used)


def count_round(state: EpochState, epochs: int) -> EpochState:
    """Return the state with one more round of ``epochs`` local epochs behind it."""
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
        The trainable float parameters: running statistics and counters say nothing about
        whether the weights have settled.

    Returns
    -------
    float
        0 when nothing changed; infinite when ``before`` is all zero and ``after`` is not.
    """
    moved, size = 0.0, 0.0
    for name in sorted(names):
        old = before[name].astype(np.float64)
        moved += float(np.sum((after[name].astype(np.float64) - old) ** 2))
        size += float(np.sum(old**2))
    if moved == 0.0:
        return 0.0
    return float(np.sqrt(moved / size)) if size > 0.0 else float("inf")
