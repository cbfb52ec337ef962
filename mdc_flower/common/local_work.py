"""The run-config keys for the length of rounds and runs, counted in local epochs or in steps.

A run has one unit of work. It is the step if ``local-steps`` or ``step-budget`` is set, and the
epoch otherwise, or with growing rounds a part of it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from strategies.method.growing import Growing
from strategies.method.local_work import (
    Fixed,
    IncreasedLocalEpochs,
    QuadraticSynchronization,
    Spread,
    Unit,
    WorkController,
)
from strategies.method.round_plan import PARTS, parts_in

FALLING = ("global-cosine", "global-linear")
"""Values of ``lr-shape`` for one curve over the whole run."""


def counted_in(local_steps: int, step_budget: int) -> Literal["epochs", "steps"]:
    """Return what keys with these values of ``local-steps`` and ``step-budget`` count."""
    return "steps" if local_steps or step_budget else "epochs"


def unit_of(config: Any) -> Unit:
    """Return the unit of work of a run config."""
    counted = counted_in(config.local_steps, config.step_budget)
    return "parts" if counted == "epochs" and config.epochs == "growing" else counted


def budget_of(config: Any) -> int:
    """Return the budget of a run config in its unit; 0 for none."""
    budgets: dict[str, int] = {
        "epochs": config.epoch_budget,
        "parts": config.epoch_budget * PARTS,
        "steps": config.step_budget,
    }
    return budgets[config.unit]


def controller_of(config: Any) -> WorkController:
    """Return the controller of a run config, which counts in its unit."""
    in_epochs, budget = config.unit == "epochs", config.budget
    length = config.local_epochs if in_epochs else config.local_steps
    match config.epochs:
        case "ile":
            longest = config.ile_max_epochs if in_epochs else config.ile_max_steps or None
            return IncreasedLocalEpochs(length, config.ile_epsilon, longest)
        case "spread":
            return Spread(budget, config.num_rounds)
        case "growing":
            return Growing(_first(config), budget, config.num_rounds)
        case "qsr":
            lr_min = config.lr_max * config.lr_min_fraction
            return QuadraticSynchronization(length, config.qsr_alpha, config.lr_max, lr_min, budget)
        case _:
            return Fixed(length)


def check_work(config: Any) -> None:
    """Raise `ValueError` if the keys do not fit together."""
    counted, budget = counted_in(config.local_steps, config.step_budget), config.budget
    if counted == "steps":
        _check_steps(config)
    elif config.ile_max_steps:
        raise ValueError("ile-max-steps needs local-steps: without it, the run counts epochs")
    key = f"{counted.removesuffix('s')}-budget"
    if not (config.num_rounds or budget):
        raise ValueError(f"num-rounds or {key} must be set; otherwise the run never ends")
    if config.epochs in ("spread", "growing") and not (config.num_rounds and budget):
        raise ValueError(f"epochs = {config.epochs!r} needs both num-rounds and {key}")
    if config.epochs == "spread" and budget < config.num_rounds:
        raise ValueError(
            f"{key} {budget} is below num-rounds {config.num_rounds}, but each round needs at "
            f"least one {counted.removesuffix('s')}"
        )
    if config.epochs == "growing" and _first(config) * config.num_rounds > budget:
        first = "local-steps" if counted == "steps" else "first-local-epochs"
        raise ValueError(
            f"epochs = 'growing' needs num-rounds times {first} of at most {key}: otherwise the "
            "rounds would have to become shorter, not longer"
        )
    _check_curves(config, key)


def _check_curves(config: Any, key: str) -> None:
    """Raise `ValueError` if learning rates over the whole run do not fit the rounds."""
    falls_in_peaks, falls_in_shape = config.lr_peak != "constant", config.lr_shape in FALLING
    if falls_in_peaks and falls_in_shape:
        raise ValueError(
            f"lr-shape {config.lr_shape!r} falls over the whole run already: set lr-peak to "
            "'constant'"
        )
    if (falls_in_peaks or falls_in_shape) and config.epochs == "ile" and not config.budget:
        name, value = ("shape", config.lr_shape) if falls_in_shape else ("peak", config.lr_peak)
        raise ValueError(f"lr-{name} {value!r} with epochs = 'ile' needs {key}")
    if config.epochs == "qsr" and not (
        config.budget and config.lr_shape == "global-cosine" and config.lr_max_decay == 1
    ):
        raise ValueError(
            f"epochs = 'qsr' needs {key}, lr-shape 'global-cosine' and lr-max-decay 1: it follows "
            "a single cosine over the whole run"
        )


def _first(config: Any) -> int:
    """Return the length of the first of growing rounds, in the run's unit."""
    return config.local_steps if config.unit == "steps" else parts_in(config.first_local_epochs)


def _check_steps(config: Any) -> None:
    """Raise `ValueError` if a run in steps also counts epochs, or lacks the length of a round."""
    # Flower's run config always has every key, so the default is the same as none.
    defaults = {name: field.default for name, field in type(config).model_fields.items()}
    if config.epoch_budget not in (0, defaults["epoch_budget"]):
        given = "local-steps" if config.local_steps else "step-budget"
        raise ValueError(
            f"{given} counts steps, but epoch-budget {config.epoch_budget} counts epochs: set "
            f"epoch-budget to 0, and step-budget or num-rounds to end the run"
        )
    if config.epochs != "spread" and not config.local_steps:
        raise ValueError(
            f"step-budget with epochs = {config.epochs!r} needs local-steps, the steps of a round"
        )
    first = config.first_local_epochs
    if config.epochs == "growing" and first != defaults["first_local_epochs"]:
        raise ValueError(
            f"first-local-epochs {first} counts epochs, but the run counts steps: leave it out; "
            "local-steps is the length of the first of growing rounds"
        )
    if config.epochs == "ile" and not (config.ile_max_steps or config.step_budget):
        raise ValueError(
            "epochs = 'ile' doubles local-steps, so it needs ile-max-steps or step-budget; use "
            "epochs = 'fixed' for the same number of steps in every round"
        )


def of_this_version(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored run config as this version writes it.

    Earlier versions had no ``step-budget``. If ``local-steps`` was set, every round had this number
    of steps, and ``epochs`` and ``epoch-budget`` had no effect.
    """
    if "step-budget" in stored or not stored.get("local-steps"):
        return {**stored}
    return {**stored, "epochs": "fixed", "epoch-budget": 0}
