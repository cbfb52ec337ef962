"""The learning rate of an optimizer's parameter groups."""

from collections.abc import Mapping
from typing import Any

import torch

LR_SCALE = "lr_scale"
"""Key of a parameter group with a factor for its rate; 1 without it."""


def scale_of(group: Mapping[str, Any]) -> float:
    """Return the factor of a parameter group."""
    return float(group.get(LR_SCALE, 1.0))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group: ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * scale_of(group)
