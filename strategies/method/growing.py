"""Rounds that grow geometrically: many exchanges early, when models change fast, and few late."""

from dataclasses import dataclass, replace

from strategies.method.local_work import WorkState

HALVINGS = 100
"""Halvings of the interval that contains the growth factor; more do not change a float."""


@dataclass(frozen=True)
class Growing:
    """A budget divided among rounds that grow by the same factor.

    The factor ``q`` is such that ``R`` rounds, the first of ``first`` units, use up the budget
    ``E``: ``first * (1 + q + ... + q^(R-1)) = E``. After ``e`` units and ``r`` rounds, the next
    round gets ``(E - e) / (1 + q + ... + q^(R-r-1))`` units, rounded. So each round corrects the
    rounding of those before, and the rounds sum to ``E`` exactly, even if the budget or the number
    of rounds changes during the run.

    Attributes
    ----------
    first : int
        Units of the first round, >= 1, with ``first * num_rounds <= budget``: otherwise the rounds
        would have to shrink.
    budget : int
        Units of all rounds.
    num_rounds : int
        Number of rounds, >= 1.
    """

    first: int
    budget: int
    num_rounds: int

    def start(self) -> WorkState:
        """Return the state before round 1."""
        return self.after_round(WorkState(self.first), None)

    def after_round(self, state: WorkState, relative_change: float | None) -> WorkState:
        """Give the next round its share of the remaining budget."""
        left, rounds_left = self.budget - state.used, self.num_rounds - state.rounds_done
        if left <= 0 or rounds_left <= 0:
            return state
        return replace(state, length=max(1, round(left / _series(self.factor, rounds_left))))

    @property
    def factor(self) -> float:
        """Return the factor by which rounds grow, >= 1."""
        low, high = 1.0, max(1.0, self.budget / self.first)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self.first * _series(middle, self.num_rounds) < self.budget:
                low = middle
            else:
                high = middle
        return low


def _series(factor: float, terms: int) -> float:
    """Return ``1 + factor + ... + factor^(terms-1)``, with the same bits on every machine."""
    total = 0.0
    for _ in range(terms):
        total = total * factor + 1.0  # no power: its last bit depends on the C library
    return total
