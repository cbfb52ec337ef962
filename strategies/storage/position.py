"""The state of a run between two rounds: everything that the next round depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strategies.aggregation.averaging import Arrays
from strategies.method.local_work import WorkState

if TYPE_CHECKING:
    from strategies.storage.round_record import RoundRecord


@dataclass(frozen=True)
class Position:
    """The complete state of the round loop between two rounds.

    Attributes
    ----------
    arrays : Arrays
        The global model.
    work : WorkState
        The controller's state, including the finished rounds and the local work done in them.
    outer_state : Arrays
        State of the outer optimizer; empty if it has none.
    best_round : int
        Round with the best model so far; 0 for none.
    best_score : float
        Score of that model; minus infinity for none.
    pace : Mapping[str, float]
        Seconds per unit of local work of each site, measured at its last reply.
    unfinished : RoundRecord or None
        The record of the last round until its model has been evaluated. Until then it is not known
        whether that model is the best.
    absent : frozenset of str
        Sites that went offline and did not come back in time.
    counted : Mapping[str, str]
        Plan id of the last round in which each site's update counted.
    """

    arrays: Arrays
    work: WorkState
    outer_state: Arrays = field(default_factory=dict)
    best_round: int = 0
    best_score: float = float("-inf")
    pace: Mapping[str, float] = field(default_factory=dict)
    unfinished: "RoundRecord | None" = None
    absent: frozenset[str] = frozenset()
    counted: Mapping[str, str] = field(default_factory=dict)
