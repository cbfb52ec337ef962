"""Which keys of the run config a user's job reads: a key of `JOB_KEYS` that it does not is idle."""

from typing import Any

from pydantic import PrivateAttr

from mdc_flower.config import JOB_KEYS, RunConfig
from mdc_flower.jobs.context import JobContext

OWN_OR_RUNS = {"data": "dataset", "data_root": "data_root"}
"""Fields of a context that hold the site's value or else the run's, with the field of the run."""


class WatchedConfig(RunConfig):
    """A run config that notes which fields are read; what is more than a field reads all."""

    _read: set[str] = PrivateAttr(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        if name in RunConfig.model_fields:
            self._read.add(name)
        elif name == "__dict__":
            self._read.update(RunConfig.model_fields)
        return super().__getattribute__(name)


class WatchedContext(JobContext):
    """A context with a watched config: who reads the data of the context, reads the run's key."""

    def __getattribute__(self, name: str) -> Any:
        if name in OWN_OR_RUNS:
            getattr(self.config, OWN_OR_RUNS[name])
        return super().__getattribute__(name)


def watched(context: JobContext) -> tuple[JobContext, set[str]]:
    """Return an equal context, and the set that gets the fields of the run config as it is read."""
    values: dict[str, Any] = {**context.config.to_flower()}
    config = WatchedConfig.model_construct(**values)
    return WatchedContext(**{**vars(context), "config": config}), config._read


def unread_keys(config: RunConfig, read: set[str]) -> list[str]:
    """Return the keys of `JOB_KEYS` that a config sets to other than the default, but are not read.

    Parameters
    ----------
    config
        The run config.
    read
        The fields that the job has read.
    """
    defaults = RunConfig().to_flower()
    return [
        key
        for key, value in config.to_flower().items()
        if key in JOB_KEYS and value != defaults[key] and key.replace("-", "_") not in read
    ]
