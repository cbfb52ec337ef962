"""How every arm's own keys are chosen: the same number of candidates, on the validation split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mdc_flower.config_model import Scalar

UNSEEN: Mapping[str, Scalar] = {"max-test-examples": 1}
"""Keys of a run that tunes: the test set stays out of it, but for the one example it must have."""


@dataclass
class ArmTuning:
    """One arm's candidates, and the validation accuracy of each after the last round, by seed."""

    candidates: Sequence[Mapping[str, Scalar]]
    validation: list[dict[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.validation:
            self.validation = [{} for _ in self.candidates]

    @property
    def chosen(self) -> int:
        """Return the candidate with the highest mean; of equal ones, the first."""
        means = [float(np.mean(list(by_seed.values()))) for by_seed in self.validation]
        return means.index(max(means))

    @property
    def values(self) -> Mapping[str, Scalar]:
        """Return the keys of the chosen candidate."""
        return self.candidates[self.chosen]
