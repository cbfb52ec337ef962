"""A callback for Hugging Face's Trainer; needs the package ``transformers``."""

from typing import Any

from transformers import TrainerCallback

from mdc_flower.site.own_loop.callback import RoundRates
from mdc_flower.training.rates import set_lr


class RoundCallback(RoundRates, TrainerCallback):
    """Sets the plan's learning rate before every step of the optimizer, whatever else sets it.

    Give the Trainer ``max_steps=round.steps(n)``, with ``n`` steps in an epoch.
    Its own log may still show the rates of its own schedule. Parameters and attributes are those of
    `RoundRates`.
    """

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the rate of this step."""
        rate = self.round.lr_at(state.global_step, state.max_steps)
        set_lr(kwargs["optimizer"], rate)
        self.rates.append(rate)
