"""The learning rate of a step, without PyTorch."""

from strategies.common.errors import MdcError
from strategies.method.round_plan import RoundPlan


def lr_of_step(plan: RoundPlan, step: int, steps: int) -> float:
    """Return the plan's rate for a step, counted from 0, of a round with so many steps.

    The first step has the cycle's first value, and the last step its last value.

    Raises
    ------
    MdcError
        If the round has no such step.
    """
    if not 0 <= step < steps:
        raise MdcError(
            "the round has no such step, so the plan has no learning rate for it",
            where=f"round {plan.round}, step {step}, counted from 0",
            expected=f"one of {steps} steps",
            hint="Count the optimizer steps of the whole round",
        )
    return plan.lr_at(step / (steps - 1) if steps > 1 else 0.0)
