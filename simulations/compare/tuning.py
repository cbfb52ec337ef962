"""How every arm's own keys are chosen: the same number of candidates, on the validation split."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mdc_flower.common.config_model import Scalar
from simulations.results.result_files import mean_validation
from strategies.common.errors import RunError

UNSEEN: Mapping[str, Scalar] = {"max-test-examples": 1}
"""Keys of a run that tunes: the test set stays out of it, but for the one example it must have."""


@dataclass
class ArmTuning:
    """One arm's candidates, and the validation accuracy of each after the last round, by seed.

    It is None where a run did not come to its last round, because the updates were not finite.
    """

    candidates: Sequence[Mapping[str, Scalar]]
    validation: list[dict[int, float | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.validation:
            self.validation = [{} for _ in self.candidates]

    @property
    def chosen(self) -> int:
        """Return the candidate with the highest mean; of equal ones, the first.

        One that did not finish with every seed is not chosen.

        Raises
        ------
        RunError
            If none did.
        """
        means = [mean_validation(by_seed) for by_seed in self.validation]
        if max(means) == -math.inf:
            raise RunError(
                "no candidate of an arm finished",
                where="tuning",
                got=[dict(one) for one in self.candidates],
                hint="Try lower learning rates",
            )
        return means.index(max(means))

    @property
    def values(self) -> Mapping[str, Scalar]:
        """Return the keys of the chosen candidate."""
        return self.candidates[self.chosen]
