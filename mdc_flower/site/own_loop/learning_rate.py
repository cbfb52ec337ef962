"""The cycle of a round as a scheduler of PyTorch."""

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from mdc_flower.training.rates import scale_of
from strategies.method.round_plan import RoundPlan


class RoundLR(LRScheduler):
    """The learning rates of one round; call `step` after every step of the optimizer.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Gets the rate of the first step at once.
    plan : RoundPlan
        The round's plan.
    steps : int
        Optimizer steps of the round.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, plan: RoundPlan, steps: int) -> None:
        self.plan = plan
        self.steps = steps
        super().__init__(optimizer)

    @property
    def is_finished(self) -> bool:
        """Return whether the rate of the last step was in use."""
        return self.last_epoch >= self.steps - 1

    def get_lr(self) -> list[Any]:
        """Return the rate of each parameter group for the next optimizer step."""
        # After the last optimizer step, `step` is called once more.
        is_over = self.last_epoch >= self.steps
        lr = self.plan.lr_of_step(self.last_epoch - is_over, self.steps)
        return [lr * scale_of(group) for group in self.optimizer.param_groups]
