"""Controllers that choose the length of the next round, with explicit state.

Lengths and budgets are whole numbers of units of local work: local epochs, parts of them, or
optimizer steps. The recipe says which; the controllers only count. A controller never sees a
model. Its inputs are one number, the relative change of the global model over a round, and its own
previous state. The state is plain data, so a checkpoint can store it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.common.blocks import blocks
from strategies.method.round_plan import cosine

Unit = Literal["epochs", "parts", "steps"]
"""What local work is counted in: epochs, thousandths of an epoch, or optimizer steps."""


@dataclass(frozen=True)
class WorkState:
    """Progress of a run, in rounds and units of local work.

    Attributes
    ----------
    length : int
        Units that the controller chose for the next round, before the budget is applied.
    used : int
        Sum of the units of all finished rounds.
    rounds_done : int
        Number of finished rounds.
    """

    length: int
    used: int = 0
    rounds_done: int = 0


class WorkController(Protocol):
    """Chooses the length of each round."""

    def start(self) -> WorkState:
        """Return the state before round 1."""
        ...

    def after_round(self, state: WorkState, relative_change: float | None) -> WorkState:
        """Return the state for the next round.

        ``state`` already counts the finished round; ``relative_change`` is None if unknown. A
        resumed run calls this again with None, because the settings of the controller, such as the
        budget, may have changed. If they have not, the result must equal ``state``.
        """
        ...


@dataclass(frozen=True)
class Fixed:
    """Rounds of the same length, as in FedAvg."""

    length: int

    def start(self) -> WorkState:
        """Return the state before round 1."""
        return WorkState(self.length)

    def after_round(self, state: WorkState, relative_change: float | None) -> WorkState:
        """Return the state with this length."""
        return replace(state, length=self.length)


@dataclass(frozen=True)
class IncreasedLocalEpochs:
    """ILE: double the length of the rounds once the global model has settled.

    If ``||w_i - w_{i-1}|| / ||w_{i-1}|| <= epsilon`` then ``T_{i+1} = 2 T_i``, else
    ``T_{i+1} = T_i``; never above ``maximum``, if there is one. The rule is this project's
    reconstruction of the strategy named in the abstract of arXiv 1810.06877, not a quotation from
    the paper.
    """

    initial: int
    epsilon: float
    maximum: int | None

    def start(self) -> WorkState:
        """Return the state before round 1."""
        return WorkState(self._limited(self.initial))

    def after_round(self, state: WorkState, relative_change: float | None) -> WorkState:
        """Double the length, up to the maximum, if the change is at most epsilon."""
        settled = relative_change is not None and relative_change <= self.epsilon
        if not settled:
            return state
        return replace(state, length=self._limited(2 * state.length))

    def _limited(self, length: int) -> int:
        return length if self.maximum is None else min(length, self.maximum)


@dataclass(frozen=True)
class Spread:
    """A budget spread evenly over a given number of rounds.

    After ``e`` of ``E`` units and ``r`` of ``R`` rounds, the next round gets
    ``floor((E - e) / (R - r))`` units. So rounds differ by at most one unit and sum to ``E``
    exactly, even if the budget or the number of rounds changes during the run.
    """

    budget: int
    num_rounds: int

    def start(self) -> WorkState:
        """Return the state before round 1."""
        return WorkState(self.budget // self.num_rounds)

    def after_round(self, state: WorkState, relative_change: float | None) -> WorkState:
        """Divide the remaining budget by the remaining rounds."""
        rounds_left = self.num_rounds - state.rounds_done
        if rounds_left <= 0:
            return state
        return replace(state, length=max(1, (self.budget - state.used) // rounds_left))


@dataclass(frozen=True)
class QuadraticSynchronization:
    """QSR: the lower the learning rate, the longer the round.

    ``T = max(base, floor((alpha / lr)^2))``, but at most the remaining budget. ``lr`` is the
    learning rate at the start of the round, under one cosine over the whole run (Gu, Lyu, Arora,
    Zhang, Huang, ICLR 2024, "A Quadratic Synchronization Rule for Distributed Deep Learning").

    The paper counts local steps. If rounds are counted in steps, ``alpha`` is the paper's. If they
    are counted in local epochs, so that sites with little and with much data can have the same
    number, the floor is taken in epochs, and ``alpha`` is in units of lr times the square root of
    epochs. If an epoch has ``K`` steps at every site, the paper's ``alpha`` is ``sqrt(K)`` times
    this one.

    Attributes
    ----------
    base : int
        Smallest length of a round, >= 1.
    alpha : float
        Growth coefficient, > 0.
    lr_max, lr_min : float
        Learning rate at the start and at the end of the cosine.
    budget : int
        Length of the cosine.
    """

    base: int
    alpha: float
    lr_max: float
    lr_min: float
    budget: int

    def start(self) -> WorkState:
        """Return the state before round 1."""
        return WorkState(self._length(0))

    def after_round(self, state: WorkState, relative_change: float | None) -> WorkState:
        """Compute the length from the learning rate; the relative change is ignored."""
        if state.used >= self.budget:
            return state  # the cosine may have reached 0
        return replace(state, length=self._length(state.used))

    def _length(self, used: int) -> int:
        ratio = self.alpha / cosine(self.lr_max, self.lr_min, used / self.budget)
        return min(self.budget - used, max(self.base, math.floor(ratio * ratio)))


@dataclass(frozen=True)
class Horizon:
    """When a run ends: after ``num_rounds`` rounds or ``budget`` units of local work.

    None means no limit. The limit that is reached first ends the run.
    """

    num_rounds: int | None
    budget: int | None

    def finished(self, state: WorkState) -> bool:
        """Return whether the run is over."""
        rounds_over = self.num_rounds is not None and state.rounds_done >= self.num_rounds
        budget_over = self.budget is not None and state.used >= self.budget
        return rounds_over or budget_over

    def fit(self, state: WorkState) -> int:
        """Return the length of the next round, limited to the remaining budget."""
        return state.length if self.budget is None else min(state.length, self.budget - state.used)


def count_round(state: WorkState, length: int) -> WorkState:
    """Return the state after one more round of this length."""
    return replace(state, used=state.used + length, rounds_done=state.rounds_done + 1)


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
        change, old = _squared_norms(before[name], after[name])
        moved, size = moved + change, size + old
    if moved == 0.0:
        return 0.0
    return float(np.sqrt(moved / size)) if size > 0.0 else float("inf")


def _squared_norms(before: NDArray[np.generic], after: NDArray[np.generic]) -> tuple[float, float]:
    """Return the squared norms of the change and of the array before, in float64."""
    old, new = before.reshape(-1), after.reshape(-1)
    # NumPy's sum depends on the whole array, so only the squares are computed in blocks.
    squares = np.empty(before.shape)
    flat = squares.reshape(-1)
    for block in blocks(flat.size):
        np.subtract(new[block], old[block], out=flat[block], dtype=np.float64)
        np.square(flat[block], out=flat[block])
    moved = float(np.sum(squares))
    for block in blocks(flat.size):
        np.square(old[block], out=flat[block], dtype=np.float64)
    return moved, float(np.sum(squares))
