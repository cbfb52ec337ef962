"""What the arms of a comparison have in common: their data, their model, and their work."""

from collections.abc import Mapping, Sequence

from mdc_flower.common.config_model import Scalar
from mdc_flower.config import RunConfig
from simulations.compare.arm import Arm
from simulations.compare.comparison_file import Comparison
from strategies.common.errors import ConfigError, MdcError

_KEYS = RunConfig.keys()
EQUAL = (*_KEYS[: _KEYS.index("model")], "model", "batch-size", "epoch-budget")
"""Keys of the run config whose values all arms, and all their candidates, share.

What says which data these are stands in the run config before the model.
"""

Configs = Mapping[str, Sequence[RunConfig]]
"""Of each arm, by its key, the config with each of its candidates."""


def configs_of(comparison: Comparison, arms: Sequence[Arm]) -> Configs:
    """Return the config of each arm with each candidate and the first seed.

    Raises
    ------
    ConfigError
        If one is not allowed, or the arms' budgets are not equal: a key of `EQUAL` differs, or
        rounds or steps, and not passes over the data, say when an arm ends.
    """
    configs = {arm.key: _configs(comparison, arm) for arm in arms}
    first = arms[0].key
    for key, candidates in configs.items():
        for config in candidates:
            _check_counts(key, config)
            _check_equal(key, config, first, configs[first][0])
    return configs


def stand_in(arm: Arm) -> dict[str, Scalar]:
    """Return a number of rounds that fits any budget, for an arm that takes another's: to check."""
    return {"num-rounds": 1} if arm.table.rounds_of else {}


def _configs(comparison: Comparison, arm: Arm) -> list[RunConfig]:
    configs = []
    for values in comparison.candidates(arm.key):
        _check_unit(arm, {**comparison.config, **arm.values, **values})
        more = {**values, **stand_in(arm), "seed": comparison.first_seed}
        try:
            configs.append(arm.config(comparison.config, **more))
        except MdcError as error:
            error.add_note(f"in the config of the arm {arm.key}")
            raise
    return configs


def _check_unit(arm: Arm, values: Mapping[str, Scalar]) -> None:
    """Refuse what ends an arm by another count than that of its passes over the data."""
    for key in ("local-steps", "num-rounds"):
        if values.get(key):
            raise ConfigError(
                "arms are compared at equal numbers of passes over the data: epoch-budget",
                where=f"{arm.key}, {key}",
                got=values[key],
                expected="0" if key == "local-steps" else "0, or an arm with rounds-of",
            )


def _check_counts(key: str, config: RunConfig) -> None:
    """Refuse what would leave an arm without sites, without some of them, or without a budget."""
    for name, value in (("num-sites", config.num_sites), ("epoch-budget", config.epoch_budget)):
        if value == 0:
            raise ConfigError(
                "a comparison needs a number",
                where=f"{key}, {name}",
                got=0,
                expected="1 or more",
            )
    if config.min_sites not in (0, config.num_sites):
        raise ConfigError(
            "every site takes part in every round of a comparison",
            where=f"{key}, min-sites",
            got=config.min_sites,
            expected=f"0 or {config.num_sites}, all sites",
        )


def _check_equal(key: str, config: RunConfig, first: str, expected: RunConfig) -> None:
    values, others = config.to_flower(), expected.to_flower()
    for name in EQUAL:
        if values[name] != others[name]:
            raise ConfigError(
                "all arms, and all candidates, have the same data, model and budget",
                where=f"{key}, {name}",
                got=values[name],
                expected=f"{others[name]!r}, as {first} has it",
                hint="Set it in [config]",
            )
