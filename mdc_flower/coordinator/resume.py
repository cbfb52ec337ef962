"""The changes that are allowed, and those that are not, when a run is resumed."""

from collections.abc import Iterable, Mapping
from typing import Any

from mdc_flower.common.local_work import counted_in, of_this_version
from mdc_flower.common.outer_step import spelled_as
from mdc_flower.config import MAY_CHANGE, RunConfig
from mdc_flower.jobs.initial_model import check_file_unchanged
from mdc_flower.models.exchange import check_base
from strategies.common.errors import ConfigError

SILENT = frozenset({"output-dir", "resume"})


def changed_keys(before: Mapping[str, Any], now: RunConfig) -> dict[str, list[Any]]:
    """Return the keys that differ from the run's stored config, each with both values.

    Raises
    ------
    ConfigError
        If a key of model, data, partition or method differs, or the unit of work: it would be a
        different run.
    """
    values = now.to_flower()
    # A key that an earlier version did not have gets its default, which has no effect.
    before = spelled_as({**RunConfig().to_flower(), **of_this_version(before)}, values)
    changed = {
        key: [before.get(key), values.get(key)]
        for key in sorted({*before, *values})
        if before.get(key) != values.get(key)
    }
    for key, (old, new) in changed.items():
        if key not in MAY_CHANGE:
            raise ConfigError(
                "a resumed run cannot change this key",
                where=f"run config, {key}",
                got=new,
                expected=repr(old),
                hint=f"Only these keys can change: {', '.join(sorted(MAY_CHANGE - SILENT))}. "
                "To change any other key, start a new run",
            )
    unit = counted_in(before["local-steps"], before["step-budget"])
    if (counted := counted_in(now.local_steps, now.step_budget)) != unit:
        raise ConfigError(
            "a resumed run cannot change what it counts its local work in",
            where="run config, step-budget",
            got=counted,
            expected=unit,
        )
    return {key: values for key, values in changed.items() if key not in SILENT}


def changed_machines(
    told: Iterable[Mapping[str, Any]], now: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return the sites whose hardware, threads or processes changed, each with both descriptions.

    Parameters
    ----------
    told
        Earlier events and records of the run, in order; ``machines`` in some of them.
    now
        Each site's description now.
    """
    last: dict[str, str] = {}
    for entry in told:
        last |= entry.get("machines", {})
    return {
        site: [last[site], machine]
        for site, machine in now.items()
        if last.get(site, machine) != machine
    }


def check_resumable(
    before: Mapping[str, Any],
    config: RunConfig,
    partition: str | None,
    base: str = "",
    data: str = "",
) -> dict[str, list[Any]]:
    """Return the keys that change when a run is resumed, each with both values.

    Parameters
    ----------
    before
        The run's config, partition and initial model, from its checkpoint.
    config
        The run config of the resumed run.
    partition
        Hash of the partition into simulated sites; None if the sites are real.
    base
        Digest of the model's arrays that are not exchanged; empty if there are none.
    data
        Digest of the contents of the data; empty if it is not known, as in earlier versions.

    Raises
    ------
    ConfigError
        If a key differs that must not change, or if the data, their partition or the file of the
        initial model differ.
    ModelError
        If the arrays that are not exchanged differ.
    """
    changed = changed_keys(before["config"], config)
    earlier = before.get("data") or data
    for key, now, then in (
        ("dataset", data or earlier, earlier),
        ("partition", partition, before["partition"]),
    ):
        if now != then:
            raise ConfigError(
                "the data, or their partition into sites, differ from those of the run",
                where=key,
                got=now,
                expected=str(then),
                hint="Restore the data set that the run was started with",
            )
    check_file_unchanged(before.get("initial-model", {}).get("sha256", ""), config)
    check_base(base, before.get("base", ""), "the resumed run")
    return changed
