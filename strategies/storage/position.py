"""Where a run stands between two rounds: all that the next round depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strategies.aggregation.averaging import Arrays
from strategies.method.local_epochs import EpochState

if TYPE_CHECKING:
    from strategies.storage.round_record import RoundRecord


@dataclass(frozen=True)
class Position:
    """Where a run stands between two rounds: the round loop's whole state.

    Attributes
    ----------
    arrays : Arrays
        The global model.
    epochs : EpochState
        The controller's state, with rounds and epochs done.
    outer_state : Arrays
        The outer optimizer's state; empty where it has none.
    best_round : int
        Round after which the model scored best so far; 0 for none.
    best_score : float
        Its score; minus infinity for none.
    pace : Mapping[str, float]
        Seconds each site took for a unit of local work when it last answered.
    unfinished : RoundRecord or None
        The record of the last round while its model is not evaluated; whether it is the best is
        not known then.
    absent : frozenset of str
        Sites that have gone and been waited for in vain.
    """

    arrays: Arrays
    epochs: EpochState
    outer_state: Arrays = field(default_factory=dict)
    best_round: int = 0
    best_score: float = float("-inf")
    pace: Mapping[str, float] = field(default_factory=dict)
    unfinished: "RoundRecord | None" = None
    absent: frozenset[str] = frozenset()
