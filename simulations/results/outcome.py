"""The outcome of one arm with one seed: a curve."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.exchange.metrics import ACCURACY, LOSS

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Point:
    """One point of an arm's curve: the metrics of a model, and the cost of training it.

    Attributes
    ----------
    round : int
        Rounds so far; 0 if training has no rounds.
    exchanges : int
        Exchanges of models or statistics with all sites so far.
    epochs : int or float
        Work so far in the unit of the budget: passes over the data, or optimizer steps of each
        site. Training on the pooled data that ends within a pass has a fraction.
    local_epochs : int or float
        Work since the previous exchange; without exchanges, all work so far.
    lr_max : float
        Highest learning rate of the round.
    relative_change : float or None
        Relative change of the global model in the round; None if nothing is averaged.
    validation, test : Mapping[str, float]
        Loss and metrics on a split's examples, by name; empty if there are no examples. A value
        that does not exist is NaN.
    sent_bytes, received_bytes : int
        Model bytes sent to and received from all sites so far.
    seconds : float
        Wall time so far on one core, with the sites trained one after the other.
    steps : int or None
        Optimizer steps so far, one after the other: in each round, those of the site with most.
        None in files of earlier versions.
    examples : int or None
        Examples trained on so far, at all sites together. None in files of earlier versions.
    """

    round: int
    exchanges: int
    epochs: int | float
    local_epochs: int | float
    lr_max: float
    relative_change: float | None
    validation: Mapping[str, float]
    test: Mapping[str, float]
    sent_bytes: int
    received_bytes: int
    seconds: float
    steps: int | None = None
    examples: int | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Point":
        """Return a point from its fields in a JSON file.

        Raises
        ------
        KeyError, TypeError
            If the fields are not those of a point.
        """
        values = dict(stored)
        for split in SPLITS:
            if not isinstance(values[split], Mapping):
                # Versions that compared only classifications stored the accuracy.
                loss = values.pop(f"{split}_loss")
                values[split] = {LOSS.name: loss, ACCURACY.name: values[split]}
            values[split] = {
                name: math.nan if value is None else value for name, value in values[split].items()
            }
        return cls(**values)

    def metrics(self, split: str) -> Mapping[str, float]:
        """Return loss and metrics on a split's examples, by name."""
        return self.test if split == "test" else self.validation


@dataclass(frozen=True)
class Outcome:
    """The curve of one arm with one seed, ordered by epochs; empty if training diverged."""

    points: Sequence[Point]

    @property
    def final(self) -> Point:
        """Return the last point, which tables and comparisons use."""
        return self.points[-1]
