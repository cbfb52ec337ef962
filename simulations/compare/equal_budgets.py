"""Check that the arms of a comparison have the same data, model and budget."""

from collections.abc import Mapping, Sequence

from mdc_flower.common.config_model import Scalar
from mdc_flower.config import RunConfig
from simulations.compare.arm import Arm
from simulations.compare.comparison_file import Comparison
from simulations.compare.rounds import certain_work
from simulations.results.rows import AVERAGING
from strategies.common.errors import ConfigError, MdcError
from strategies.method.local_work import Unit

_KEYS = RunConfig.keys()
SHARED_KEYS = (
    *_KEYS[: _KEYS.index("model")],
    "model",
    "initial-model",
    "batch-size",
    "epoch-budget",
    "step-budget",
)
"""Run-config keys whose values must be the same for all arms and all candidates.

The run config lists the keys of the data before ``model``. A centralized arm with a protocol also
has these values; what it trains with follows from them, see `simulations.compare.course`.
"""

COUNTED_IN: Mapping[str, Unit] = {
    "local-epochs": "epochs",
    "ile-max-epochs": "epochs",
    "local-steps": "steps",
    "ile-max-steps": "steps",
    "step-budget": "steps",
}
"""Run-config keys that have no meaning in a run that counts its work in the other unit."""

Configs = Mapping[str, Sequence[RunConfig]]
"""One config per candidate, by arm key."""


def configs_of(comparison: Comparison, arms: Sequence[Arm]) -> Configs:
    """Return the configs of each arm, one per candidate, with the first seed.

    Raises
    ------
    ConfigError
        If a config is invalid or the budgets are not equal: a key of `SHARED_KEYS` differs, an arm
        counts its work in another unit than ``[config]`` does, or its rounds may end before it has
        used the budget.
    """
    unit = _unit_of(comparison)
    configs = {arm.key: _configs(comparison, arm, unit) for arm in arms}
    first = arms[0].key
    for arm in arms:
        for config in configs[arm.key]:
            _check_counts(arm.key, config)
            _check_equal(arm, config, arms[0], configs[first][0])
            if arm.table.kind in AVERAGING and not arm.table.rounds_of:
                _check_used(arm.key, config)
    return configs


def placeholder_rounds(arm: Arm) -> dict[str, Scalar]:
    """Return a number of rounds that fits any budget, to check an arm with ``rounds-of``."""
    return {"num-rounds": 1} if arm.table.rounds_of else {}


def _unit_of(comparison: Comparison) -> Unit:
    """Return the unit in which ``[config]`` counts the budget of all arms."""
    in_steps = any(comparison.config.get(key) for key in ("step-budget", "local-steps"))
    return "steps" if in_steps else "epochs"


def _configs(comparison: Comparison, arm: Arm, unit: Unit) -> list[RunConfig]:
    configs = []
    for values in comparison.candidates(arm.key):
        _check_unit(arm, {**arm.values, **values}, unit)
        more = {**values, **placeholder_rounds(arm), "seed": comparison.first_seed}
        try:
            configs.append(arm.config(comparison.config, **more))
        except MdcError as error:
            error.add_note(f"in the config of the arm {arm.key}")
            raise
    return configs


def _check_unit(arm: Arm, own: Mapping[str, Scalar], unit: Unit) -> None:
    """Raise ConfigError if the arm itself sets a key of the other unit."""
    for key, counted in COUNTED_IN.items():
        if own.get(key) and counted != unit:
            raise ConfigError(
                f"the comparison counts work in {unit}, and this arm in {counted}",
                where=f"{arm.key}, {key}",
                got=own[key],
                expected=f"keys that count {unit}, as [config] does",
                hint="step-budget in [config] counts steps, epoch-budget epochs; leave out arms "
                "that cannot count in this unit",
            )


def _check_counts(key: str, config: RunConfig) -> None:
    """Raise ConfigError if the arm has no sites, no budget, or may skip sites."""
    budget = "step-budget" if config.unit == "steps" else "epoch-budget"
    for name, value in (("num-sites", config.num_sites), (budget, config.budget)):
        if value == 0:
            raise ConfigError(
                "a comparison needs this number",
                where=f"{key}, {name}",
                got=0,
                expected="1 or more",
            )
    if config.min_sites not in (0, config.num_sites):
        raise ConfigError(
            "every site must take part in every round of a comparison",
            where=f"{key}, min-sites",
            got=config.min_sites,
            expected=f"0 or {config.num_sites}, all sites",
        )


def _check_equal(arm: Arm, config: RunConfig, first: Arm, of_first: RunConfig) -> None:
    values, others = _shared_values(arm, config), _shared_values(first, of_first)
    for name in SHARED_KEYS:
        if values[name] != others[name]:
            raise ConfigError(
                "all arms and candidates must have the same data, model and budget",
                where=f"{arm.key}, {name}",
                got=values[name],
                expected=f"{others[name]!r}, the value of the arm {first.key}",
                hint="Set it in [config]",
            )


def _shared_values(arm: Arm, config: RunConfig) -> dict[str, Scalar]:
    """Return the values of a config, with the budget of the comparison."""
    values = config.to_flower()
    times = arm.budgets_of(config)
    return {**values, **{key: int(values[key]) // times for key in ("epoch-budget", "step-budget")}}


def _check_used(key: str, config: RunConfig) -> None:
    """Raise ConfigError if the rounds may end before the arm has used the whole budget."""
    if config.num_rounds and (used := certain_work(config)) < config.budget:
        raise ConfigError(
            "the arm may end before it has used the budget that all arms have",
            where=f"{key}, num-rounds",
            got=f"{config.num_rounds}, in which it is certain to train {used} {config.unit}",
            expected=f"enough rounds for {config.budget} {config.unit}, or 0 for no limit",
            hint="epochs = 'spread' divides the budget over any number of rounds",
        )
