"""Choose the keys of each arm from its candidates by their job's metric on the validation split."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mdc_flower.common.config_model import Scalar
from simulations.results.result_files import mean_validation
from strategies.common.errors import RunError
from strategies.exchange.metrics import ACCURACY, Metric

TUNING_KEYS: Mapping[str, Scalar] = {"max-test-examples": 1}
"""Run-config keys of a tuning job: it uses only one test example, the minimum."""


@dataclass
class ArmTuning:
    """The candidates of one arm, with their metric on the validation split at the end, by seed.

    The metric is the one that selects the best model. It is None if the run diverged.
    """

    candidates: Sequence[Mapping[str, Scalar]]
    validation: list[dict[int, float | None]] = field(default_factory=list)
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        if not self.validation:
            self.validation = [{} for _ in self.candidates]

    @property
    def chosen(self) -> int:
        """Return the index of the candidate with the best mean; the first of equal ones.

        Candidates that diverged with any seed are not chosen.

        Raises
        ------
        RunError
            If all candidates diverged.
        """
        means = [mean_validation(by_seed) for by_seed in self.validation]
        known = [mean for mean in means if math.isfinite(mean)]
        if not known:
            raise RunError(
                "all candidates of an arm diverged",
                where="tuning",
                got=[dict(one) for one in self.candidates],
                hint="Try lower learning rates",
            )
        return means.index(max(known) if self.metric.better == "max" else min(known))

    @property
    def values(self) -> Mapping[str, Scalar]:
        """Return the keys and values of the chosen candidate."""
        return self.candidates[self.chosen]
