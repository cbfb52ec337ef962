"""A callback for Lightning's Trainer; needs the package ``lightning``."""

from typing import Any

from lightning.pytorch import Callback

from mdc_flower.site.own_loop.callback import RoundRates
from mdc_flower.training.rates import set_lr
from strategies.common.errors import ConfigError


class RoundCallback(RoundRates, Callback):
    """Sets the plan's learning rate before every step of the optimizer, whatever else sets it.

    Give the Trainer ``max_steps=round.steps(n)``, with ``n`` steps in an epoch.
    Parameters and attributes are those of `RoundRates`.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a module whose steps are not those of one optimizer."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                "the learning rate of a round is for one optimizer",
                where="configure_optimizers",
                got=f"{len(trainer.optimizers)} optimizers",
                hint="Use round.lr_at(step, steps) in your own callback",
            )

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate of the next step; Lightning's own schedulers have had their turn."""
        rate = self.round.lr_at(trainer.global_step, trainer.estimated_stepping_batches)
        set_lr(trainer.optimizers[0], rate)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note the rate of this step."""
        self.rates.append(optimizer.param_groups[0]["lr"])
