"""The outcome of one arm with one seed: a curve."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One point of an arm's curve: the metrics of a model, and the cost of training it.

    Attributes
    ----------
    round : int
        Rounds so far; 0 if training has no rounds.
    exchanges : int
        Exchanges of models or statistics with all sites so far.
    epochs : int
        Passes over the data so far.
    local_epochs : int
        Passes since the previous exchange; without exchanges, all passes so far.
    lr_max : float
        Highest learning rate of the round.
    relative_change : float or None
        Relative change of the global model in the round; None if nothing is averaged.
    validation, test : float
        Accuracy in [0, 1].
    validation_loss, test_loss : float
        Mean cross-entropy per example.
    sent_bytes, received_bytes : int
        Model bytes sent to and received from all sites so far.
    seconds : float
        Wall time so far on one core, with the sites trained one after the other.
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
    """The curve of one arm with one seed, ordered by epochs; empty if training diverged."""

    points: Sequence[Point]

    @property
    def final(self) -> Point:
        """Return the last point, which tables and comparisons use."""
        return self.points[-1]
