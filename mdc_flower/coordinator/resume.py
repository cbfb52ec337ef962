"""What may change when a run goes on, and what may not."""

from collections.abc import Mapping
from typing import Any

from mdc_flower.config import RunConfig, spelled_as
from strategies.common.errors import ConfigError

MAY_CHANGE = frozenset(
    {
        "num-rounds",
        "epoch-budget",
        "min-sites",
        "max-round-retries",
        "wait-for-sites-s",
        "quorum-patience-s",
        "round-deadline-s",
        "deadline-factor",
        "longest-round-s",
        "max-restarts",
        "keep-checkpoints",
        "keep-updates",
        "data-root",
        "output-dir",
        "resume",
    }
)
"""Keys of the run config about when a run ends, how long it waits, and where files are."""

SILENT = frozenset({"output-dir", "resume"})


def changed_keys(before: Mapping[str, Any], now: RunConfig) -> dict[str, list[Any]]:
    """Return the keys that differ from the run's own config, each with both values.

    Raises
    ------
    ConfigError
        If a key differs that belongs to model, data, partition or method: the run would not
        be the same run.
    """
    values = now.to_flower()
    # A key that an earlier version did not know had no effect then, nor has its default now.
    before = spelled_as({**RunConfig().to_flower(), **before}, values)
    changed = {
        key: [before.get(key), values.get(key)]
        for key in sorted({*before, *values})
        if before.get(key) != values.get(key)
    }
    for key, (old, new) in changed.items():
        if key not in MAY_CHANGE:
            raise ConfigError(
                "a run that goes on cannot change this",
                where=f"run config, {key}",
                got=new,
                expected=repr(old),
                hint=f"Only these can: {', '.join(sorted(MAY_CHANGE - SILENT))}. "
                "For anything else start a new run",
            )
    return {key: values for key, values in changed.items() if key not in SILENT}


def check_resumable(
    before: Mapping[str, Any], config: RunConfig, partition: str | None
) -> dict[str, list[Any]]:
    """Return the keys that change when a run goes on, each with both values.

    Parameters
    ----------
    before
        What the run was started with, from its checkpoint.
    config
        The run config with which it is to go on.
    partition
        Hash of the cut into simulated sites; None where sites are real.

    Raises
    ------
    ConfigError
        If a key differs that may not, or the data or their cut do.
    """
    changed = changed_keys(before["config"], config)
    if before["partition"] != partition:
        raise ConfigError(
            "the data, or their cut into sites, are not the run's own",
            where="partition",
            got=partition,
            expected=str(before["partition"]),
            hint="Bring back the data set that the run was started with",
        )
    return changed
