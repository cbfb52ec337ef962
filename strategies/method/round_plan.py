"""What a site is told to do in one round, and the learning rate at every point of it.

A site follows the plan it receives and nothing else: it derives no learning rate from its
own clock or from a count of rounds it has seen (it may have missed some).
"""

import hashlib
import json
import math
from typing import Annotated, Literal, Self

from flwr.app import ConfigRecord
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from strategies.common.errors import PlanError

CycleShape = Literal["exponential", "cosine", "linear", "triangular", "constant", "global-cosine"]

PLAN_VERSION = 1


class RoundPlan(BaseModel):
    """One round's instructions to a site; the same for every site.

    Attributes
    ----------
    round : int
        Number of the round, from 1.
    local_epochs, local_steps : int
        How long to train: exactly one of the two is positive.
    lr_max, lr_min : float
        Highest and lowest learning rate of the round's cycle, ``0 <= lr_min <= lr_max``.
    shape : CycleShape
        Curve between the two.
    run_start, run_end : float
        Share of the whole run's local work done before and after this round, in [0, 1].
        Only ``global-cosine`` reads them.
    seed : int
        The run's seed; a site mixes in the round and its own name.
    proximal_mu : float
        Weight of the proximal term ``mu / 2 * ||w - w_round||^2`` of FedProx
        (Li et al., MLSys 2020, eq. 2); 0 turns it off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = PLAN_VERSION
    round: Annotated[int, Field(ge=1)]
    local_epochs: Annotated[int, Field(ge=0)] = 0
    local_steps: Annotated[int, Field(ge=0)] = 0
    lr_max: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    lr_min: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    shape: CycleShape = "exponential"
    run_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    run_end: Annotated[float, Field(ge=0, le=1)] = 1.0
    seed: int
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.version != PLAN_VERSION:
            raise ValueError(f"version {self.version} is not {PLAN_VERSION}, the one known here")
        if (self.local_epochs > 0) == (self.local_steps > 0):
            raise ValueError("exactly one of local_epochs and local_steps must be positive")
        if self.lr_min > self.lr_max:
            raise ValueError(f"lr_min {self.lr_min} is above lr_max {self.lr_max}")
        if self.shape == "exponential" and self.lr_min == 0:
            raise ValueError("an exponential cycle cannot end at lr_min 0")
        return self

    @property
    def plan_id(self) -> str:
        """Return 16 hex digits that any change of the plan changes.

        A round that is repeated has the same id, so replies to either sending count.
        """
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def lr_at(self, progress: float) -> float:
        """Return the learning rate at ``progress`` in [0, 1] through the round's local steps.

        With ``a = lr_max`` and ``b = lr_min``:

        - ``exponential``: ``a * (b / a) ** p``
        - ``cosine``: ``b + (a - b) * (1 + cos(pi * p)) / 2``
        - ``linear``: ``a + (b - a) * p``
        - ``triangular``: from ``b`` up to ``a`` at p = 1/2 and back
          (Smith, WACV 2017, "triangular" policy with one cycle a round)
        - ``constant``: ``a``
        - ``global-cosine``: ``cosine`` over the whole run, of which this round is the part
          from ``run_start`` to ``run_end``

        Raises
        ------
        ValueError
            If ``progress`` is outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be in [0, 1], got {progress}")
        high, low = self.lr_max, self.lr_min
        match self.shape:
            case "exponential":
                return high * float((low / high) ** progress)
            case "cosine":
                return cosine(high, low, progress)
            case "linear":
                return high + (low - high) * progress
            case "triangular":
                return low + (high - low) * (1 - abs(2 * progress - 1))
            case "constant":
                return high
            case "global-cosine":
                whole = self.run_start + (self.run_end - self.run_start) * progress
                return cosine(high, low, whole)

    def to_config_record(self) -> ConfigRecord:
        """Return the plan as the record that travels in a message, with its id."""
        return ConfigRecord({**self.model_dump(), "plan_id": self.plan_id})

    @classmethod
    def from_config_record(cls, record: ConfigRecord) -> Self:
        """Read a plan; refuse, by name, whatever this version does not understand.

        Raises
        ------
        PlanError
            On a missing or unknown field, a value out of range, or an id that does not
            belong to the fields.
        """
        fields = dict(record)
        claimed_id = fields.pop("plan_id", None)
        if missing := [name for name in cls.model_fields if name not in fields]:
            # A default would be this site's guess at what the coordinator meant.
            raise PlanError("a required field is missing", where=f"round plan, {missing[0]}")
        try:
            plan = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PlanError(
                f"this site does not understand the round plan: {first['msg']}",
                where=f"round plan, {where or 'as a whole'}",
                got=first["input"] if where else None,
                hint="Coordinator and site must run the same version of mdc-flower",
            ) from None
        if claimed_id != plan.plan_id:
            raise PlanError(
                "the id does not belong to the fields",
                where="round plan, plan_id",
                got=claimed_id,
                expected=plan.plan_id,
                hint="The plan was changed on its way; send it again",
            )
        return plan


def cosine(high: float, low: float, progress: float) -> float:
    """Return the value at ``progress`` in [0, 1] of half a cosine from ``high`` to ``low``."""
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2
