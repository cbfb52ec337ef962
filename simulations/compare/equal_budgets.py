"""Check that the arms of a comparison have the same data, model and budget."""

from collections.abc import Mapping, Sequence

from mdc_flower.common.config_model import Scalar
from mdc_flower.config import RunConfig
from simulations.compare.arm import Arm
from simulations.compare.comparison_file import Comparison
from strategies.common.errors import ConfigError, MdcError

_KEYS = RunConfig.keys()
SHARED_KEYS = (*_KEYS[: _KEYS.index("model")], "model", "batch-size", "epoch-budget")
"""Run-config keys whose values must be the same for all arms and all candidates.

The run config lists the keys of the data before ``model``.
"""

Configs = Mapping[str, Sequence[RunConfig]]
"""One config per candidate, by arm key."""


def configs_of(comparison: Comparison, arms: Sequence[Arm]) -> Configs:
    """Return the configs of each arm, one per candidate, with the first seed.

    Raises
    ------
    ConfigError
        If a config is invalid or the budgets are not equal: a key of `SHARED_KEYS` differs, or an
        arm ends after a number of rounds or steps instead of passes over the data.
    """
    configs = {arm.key: _configs(comparison, arm) for arm in arms}
    first = arms[0].key
    for key, candidates in configs.items():
        for config in candidates:
            _check_counts(key, config)
            _check_equal(key, config, first, configs[first][0])
    return configs


def placeholder_rounds(arm: Arm) -> dict[str, Scalar]:
    """Return a number of rounds that fits any budget, to check an arm with ``rounds-of``."""
    return {"num-rounds": 1} if arm.table.rounds_of else {}


def _configs(comparison: Comparison, arm: Arm) -> list[RunConfig]:
    configs = []
    for values in comparison.candidates(arm.key):
        _check_unit(arm, {**comparison.config, **arm.values, **values})
        more = {**values, **placeholder_rounds(arm), "seed": comparison.first_seed}
        try:
            configs.append(arm.config(comparison.config, **more))
        except MdcError as error:
            error.add_note(f"in the config of the arm {arm.key}")
            raise
    return configs


def _check_unit(arm: Arm, values: Mapping[str, Scalar]) -> None:
    """Raise ConfigError if the arm would not end after a number of passes over the data."""
    for key in ("local-steps", "step-budget", "num-rounds"):
        if values.get(key):
            raise ConfigError(
                "all arms must make equal numbers of passes over the data, as set by epoch-budget",
                where=f"{arm.key}, {key}",
                got=values[key],
                expected="0, or an arm with rounds-of" if key == "num-rounds" else "0",
            )


def _check_counts(key: str, config: RunConfig) -> None:
    """Raise ConfigError if the arm has no sites, no budget, or may skip sites."""
    for name, value in (("num-sites", config.num_sites), ("epoch-budget", config.epoch_budget)):
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


def _check_equal(key: str, config: RunConfig, first: str, expected: RunConfig) -> None:
    values, others = config.to_flower(), expected.to_flower()
    for name in SHARED_KEYS:
        if values[name] != others[name]:
            raise ConfigError(
                "all arms and candidates must have the same data, model and budget",
                where=f"{key}, {name}",
                got=values[name],
                expected=f"{others[name]!r}, the value of the arm {first}",
                hint="Set it in [config]",
            )
