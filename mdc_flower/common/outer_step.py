"""The run-config keys of the coordinator's step, which applies the averaged update."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from strategies.aggregation.extrapolation import FedExP
from strategies.aggregation.outer_optimizers import (
    Adam,
    Average,
    Momentum,
    OuterOptimizer,
    momentum_for,
)

AUTO = "auto"
"""Value of ``outer-momentum`` for the momentum that suits ``num-rounds``."""

OUTER_LR = {"average": 1.0, "fedexp": 1.0, "momentum": Momentum.lr, "adam": Adam.lr}
"""Learning rate of each outer optimizer if ``outer-lr`` is 0."""


def _momentum(value: float | str) -> float | str:
    if value != AUTO and not (isinstance(value, float | int) and 0 <= value < 1):
        raise ValueError("outer-momentum must be 'auto', or at least 0 and below 1")
    return value


OuterMomentum = Annotated[float | str, AfterValidator(_momentum)]


def outer_of(config: Any) -> OuterOptimizer | FedExP:
    """Return the outer optimizer of a run config."""
    lr = config.outer_lr or OUTER_LR[config.outer_optimizer]
    match config.outer_optimizer:
        case "momentum":
            momentum = _momentum_in(config.outer_momentum, config.num_rounds)
            return Momentum(lr, momentum, config.outer_nesterov)
        case "adam":
            return Adam(lr, config.outer_beta1, config.outer_beta2, config.outer_epsilon)
        case "fedexp":
            return FedExP(config.outer_epsilon)
        case _:
            return Average()


def check_outer(config: Any) -> None:
    """Raise `ValueError` if the keys do not fit together."""
    outer = config.outer_optimizer
    if outer in ("average", "fedexp") and config.outer_lr not in (0, 1):
        raise ValueError(f"outer-optimizer {outer!r} does not use outer-lr: set it to 0")
    if config.outer_nesterov and config.outer_momentum == 0:
        raise ValueError("outer-nesterov needs outer-momentum above 0")
    if config.outer_plain_last > 1 and config.epochs == "ile":
        raise ValueError(
            "outer-plain-last above 1 needs another rule than epochs = 'ile', with which only the "
            "last round is known in advance"
        )


def spelled_as(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of ``before``, spelled as in ``now`` where both mean the same.

    One config may give the learning rate or the momentum that the other takes from the default.
    """
    spelled = {**before}
    for key, meaning in (("outer-lr", _lr_meant), ("outer-momentum", _momentum_meant)):
        if key in before and meaning(before) == meaning(now):
            spelled[key] = now[key]
    return spelled


def _lr_meant(values: Mapping[str, Any]) -> Any:
    return values.get("outer-lr") or OUTER_LR.get(values.get("outer-optimizer", ""))


def _momentum_meant(values: Mapping[str, Any]) -> Any:
    uses_it = values.get("outer-optimizer") == "momentum"
    num_rounds = values.get("num-rounds", 0) if uses_it else 0
    return _momentum_in(values.get("outer-momentum", AUTO), num_rounds)


def _momentum_in(value: float | str, num_rounds: int) -> float:
    if value != AUTO:
        return float(value)
    return momentum_for(num_rounds) if num_rounds else Momentum.momentum
