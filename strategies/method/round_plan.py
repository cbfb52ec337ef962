"""The plan of a round: a site's instructions, and the learning rate at every point of the round.

A site follows only the plan that it receives. It derives no learning rate from its own clock or
from the number of rounds it has seen, because it may have missed some.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from flwr.app import ConfigRecord
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from strategies.common.errors import PlanError

CycleShape = Literal["exponential", "cosine", "linear", "triangular", "constant", "global-cosine"]

PLAN_VERSION = 2

SAME_VERSION = "Coordinator and site must run the same version of mdc-flower"


class RoundPlan(BaseModel):
    """Instructions for one round, the same for every site.

    Attributes
    ----------
    round : int
        Round number, starting at 1.
    local_epochs, local_steps : int
        Length of the training; exactly one of the two is positive.
    steps_before : int
        Optimizer steps of the rounds before, which is where a stream of examples continues; 0 in a
        run that counts epochs.
    lr_max, lr_min : float
        Highest and lowest learning rate of the round's cycle, ``0 <= lr_min <= lr_max``.
    shape : CycleShape
        Curve between the two.
    run_start, run_end : float
        Fraction of the run's local work done before and after this round, in [0, 1]. Used only by
        ``global-cosine``.
    seed : int
        The run's seed. A site combines it with the round number and its own name.
    proximal_mu : float
        Weight of the proximal term ``mu / 2 * ||w - w_round||^2`` of FedProx
        (Li et al., MLSys 2020, eq. 2); 0 turns it off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = PLAN_VERSION
    round: Annotated[int, Field(ge=1)]
    local_epochs: Annotated[int, Field(ge=0)] = 0
    local_steps: Annotated[int, Field(ge=0)] = 0
    steps_before: Annotated[int, Field(ge=0)] = 0
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
            raise ValueError(f"version {self.version} is not supported, expected {PLAN_VERSION}")
        if (self.local_epochs > 0) == (self.local_steps > 0):
            raise ValueError("exactly one of local_epochs and local_steps must be positive")
        if self.lr_min > self.lr_max:
            raise ValueError(f"lr_min {self.lr_min} is above lr_max {self.lr_max}")
        if self.shape == "exponential" and self.lr_min == 0:
            raise ValueError("an exponential cycle cannot end at lr_min 0")
        return self

    @property
    def plan_id(self) -> str:
        """Return a 16-digit hex digest of the plan.

        A repeated round has the same id, so replies to any of its attempts count.
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
          (Smith, WACV 2017, "triangular" policy with one cycle per round)
        - ``constant``: ``a``
        - ``global-cosine``: ``cosine`` over the whole run; this round covers the part from
          ``run_start`` to ``run_end``

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
        """Return the plan and its id as a record for a message."""
        return ConfigRecord({**self.model_dump(), "plan_id": self.plan_id})

    @classmethod
    def from_config_record(cls, record: ConfigRecord) -> Self:
        """Read a plan from a record.

        Raises
        ------
        PlanError
            If a field is missing, unknown or out of range, or if the id does not match the fields.
            The error names the field.
        """
        fields = dict(record)
        claimed_id = fields.pop("plan_id", None)
        if fields.get("version", PLAN_VERSION) != PLAN_VERSION:
            raise PlanError(
                "this site does not know the version of the round plan",
                where="round plan, version",
                got=fields["version"],
                expected=str(PLAN_VERSION),
                hint=SAME_VERSION,
            )
        if missing := [name for name in cls.model_fields if name not in fields]:
            # Filling in a default would be a guess at what the coordinator meant.
            raise PlanError(
                "a required field is missing",
                where=f"round plan, {missing[0]}",
                hint=SAME_VERSION,
            )
        try:
            plan = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PlanError(
                f"this site does not understand the round plan: {first['msg']}",
                where=f"round plan, {where or 'as a whole'}",
                got=first["input"] if where else None,
                hint=SAME_VERSION,
            ) from None
        if claimed_id != plan.plan_id:
            raise PlanError(
                "the plan id does not match the fields",
                where="round plan, plan_id",
                got=claimed_id,
                expected=plan.plan_id,
                hint="The plan was changed in transit; send it again",
            )
        return plan

    @classmethod
    def recorded(cls, fields: Mapping[str, Any]) -> Self:
        """Read a plan from the record of a round, which an earlier version may have written.

        Raises
        ------
        ValidationError
            If a later version wrote it, in a format that this one does not know.
        """
        plan = {name: value for name, value in fields.items() if name != "plan_id"}
        if plan.get("version") == 1:  # it had no `steps_before`, and was the same otherwise
            plan["version"] = PLAN_VERSION
        return cls.model_validate(plan)


def cosine(high: float, low: float, progress: float) -> float:
    """Return a half cosine from ``high`` to ``low``, evaluated at ``progress`` in [0, 1]."""
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2
