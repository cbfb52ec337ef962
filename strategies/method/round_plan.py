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

from strategies.common.errors import MdcError, PlanError

CycleShape = Literal[
    "exponential",
    "cosine",
    "linear",
    "triangular",
    "constant",
    "global-cosine",
    "global-linear",
]

PLAN_VERSION = 3

PARTS = 1000
"""Parts of an epoch, for rounds that need not end with an epoch."""

SAME_VERSION = "Coordinator and site must run the same version of mdc-flower"


class RoundPlan(BaseModel):
    """Instructions for one round, the same for every site.

    Attributes
    ----------
    round : int
        Round number, starting at 1.
    local_epochs, local_parts, local_steps : int
        Length of the training in epochs, in `PARTS` of an epoch, or in steps; exactly one of the
        three is positive.
    parts_before : int
        Parts of an epoch of the rounds before; 0 in a run that does not count them.
    steps_before : int
        Optimizer steps of the rounds before, which is where a stream of examples continues; 0 in a
        run that does not count steps.
    lr_max, lr_min : float
        Highest and lowest learning rate of the round's cycle, ``0 <= lr_min <= lr_max``.
    shape : CycleShape
        Curve between the two.
    run_start, run_end : float
        Fraction of the run's local work done before and after this round, in [0, 1]. Used only by
        ``global-cosine`` and ``global-linear``.
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
    local_parts: Annotated[int, Field(ge=0)] = 0
    parts_before: Annotated[int, Field(ge=0)] = 0
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
        lengths = (self.local_epochs, self.local_parts, self.local_steps)
        if sum(length > 0 for length in lengths) != 1:
            raise ValueError(
                "exactly one of local_epochs, local_parts and local_steps must be positive"
            )
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

    def steps(self, per_epoch: int) -> int:
        """Return the optimizer steps of the round at a site with so many steps per epoch.

        Over rounds that are counted in parts of an epoch, the sum is that of the epochs, at every
        site, if there are at least as many steps as rounds.
        """
        if not self.local_parts:
            return self.local_steps or self.local_epochs * per_epoch
        end = self._steps_by(self.parts_before + self.local_parts, self.round, per_epoch)
        return max(1, end - self.place(per_epoch))

    def place(self, per_epoch: int) -> int:
        """Return the optimizer steps before the round, at a site with so many steps per epoch.

        This is where a stream continues, or an epoch that the round before has not finished; 0 if
        every round begins with a new epoch.
        """
        if self.local_parts:
            return self._steps_by(self.parts_before, self.round - 1, per_epoch)
        return self.steps_before

    @staticmethod
    def _steps_by(parts: int, rounds: int, per_epoch: int) -> int:
        # A round has at least one step, however few steps an epoch has.
        return max(rounds, parts * per_epoch // PARTS)

    def lr_at(self, progress: float) -> float:
        """Return the learning rate at ``progress`` in [0, 1] through the round's local steps.

        With ``a = lr_max`` and ``b = lr_min``:

        - ``exponential``: ``a * (b / a) ** p``
        - ``cosine``: ``b + (a - b) * (1 + cos(pi * p)) / 2``
        - ``linear``: ``a + (b - a) * p``
        - ``triangular``: from ``b`` up to ``a`` at p = 1/2 and back
          (Smith, WACV 2017, "triangular" policy with one cycle per round)
        - ``constant``: ``a``
        - ``global-cosine``, ``global-linear``: ``cosine`` or ``linear`` over the whole run; this
          round covers the part from ``run_start`` to ``run_end``

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
                return cosine(high, low, self._progress_of_run(progress))
            case "global-linear":
                return high + (low - high) * self._progress_of_run(progress)

    def lr_of_step(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, of a round with so many steps.

        The first step has the cycle's first value, and the last step its last value.

        Raises
        ------
        MdcError
            If the round has no such step.
        """
        if not 0 <= step < steps:
            raise MdcError(
                "the round has no such step, so the plan has no learning rate for it",
                where=f"round {self.round}, step {step}, counted from 0",
                expected=f"one of {steps} steps",
                hint="Count the optimizer steps of the whole round",
            )
        return self.lr_at(step / (steps - 1) if steps > 1 else 0.0)

    def _progress_of_run(self, progress: float) -> float:
        return self.run_start + (self.run_end - self.run_start) * progress

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
        if plan.get("version") in (1, 2):  # they had fewer fields, and were the same otherwise
            plan["version"] = PLAN_VERSION
        return cls.model_validate(plan)


def units_of(plan: Mapping[str, Any]) -> int:
    """Return the length of a recorded plan in its own unit: epochs, parts of an epoch, or steps."""
    # Earlier versions had no parts.
    return int(plan.get("local_steps") or plan.get("local_parts") or plan["local_epochs"])


def epochs_of(plan: Mapping[str, Any]) -> int | float:
    """Return the epochs of a recorded plan; 0 if it counts steps."""
    return in_epochs(plan.get("local_parts", 0)) or int(plan["local_epochs"])


def parts_in(epochs: float) -> int:
    """Return a number of epochs in parts of an epoch, rounded, but at least one part."""
    return max(1, round(epochs * PARTS))


def in_epochs(parts: int) -> int | float:
    """Return parts of an epoch as a number of epochs, whole if it is."""
    return parts / PARTS if parts % PARTS else parts // PARTS


def cosine(high: float, low: float, progress: float) -> float:
    """Return a half cosine from ``high`` to ``low``, evaluated at ``progress`` in [0, 1]."""
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2
