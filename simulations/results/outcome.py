"""What one arm reached with one seed: a curve."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One point of an arm's curve: a model, and what it took to come there.

    Attributes
    ----------
    round : int
        Rounds so far; 0 for training without any.
    exchanges : int
        Times that models, or statistics, have been exchanged with all sites so far.
    epochs : int
        Passes over the data so far.
    local_epochs : int
        Passes since the exchange before; without exchanges, all of them.
    lr_max : float
        Highest learning rate of the round.
    relative_change : float or None
        How far the round moved the global model; None where nothing is averaged.
    validation, test : float
        Accuracy in [0, 1].
    validation_loss, test_loss : float
        Mean cross-entropy per example.
    sent_bytes, received_bytes : int
        Model bytes so far, to and from all sites.
    seconds : float
        Wall time so far, on one core, sites one after the other.
    """

    round: int
    exchanges: int
    epochs: int
    local_epochs: int
    lr_max: float
    relative_change: float | None
    validation: float
    validation_loss: float
    test: float
    test_loss: float
    sent_bytes: int
    received_bytes: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The curve of one arm with one seed, in the order of the epochs; empty if it diverged."""

    points: Sequence[Point]

    @property
    def final(self) -> Point:
        """Return the last point: what the arm is judged by."""
        return self.points[-1]
