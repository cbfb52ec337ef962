"""The data and partition that a process keeps between the messages to its sites."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache

from mdc_flower.config import RunConfig, SiteConfig
from mdc_flower.console.site_log import SITE_LOG, site_event
from mdc_flower.data.partitions import Partition
from mdc_flower.jobs.task import Task, load_site_task
from mdc_flower.site.client import SiteClient
from mdc_flower.training.loop import Progress


@dataclass(frozen=True)
class Resources:
    """What all sites of a process share.

    Attributes
    ----------
    task : Task
        Contains the single data set; each simulated site has some of its rows.
    parts : Partition or None
        The rows of each simulated site; None if the site has the whole data set.
    """

    task: Task
    parts: Partition | None


def site_client(config: RunConfig, site: SiteConfig) -> SiteClient:
    """Return the client of a site, reusing the shared data of this process.

    Raises
    ------
    ConfigError, DataError, ModelError
        See `load_site_task` and `Task.new_model`.
    """
    shared = resources(config, site.shared_config())
    data = shared.task.site_data(site, shared.parts)
    return SiteClient(
        site.name,
        shared.task.job({"train": data.train, "validation": data.validation}),
        shared.task.settings,
        shared.task.device,
        _progress_log(),
        config.seed,
        config.batch_norm == "local",
    )


@lru_cache(maxsize=1)
def resources(config: RunConfig, site: SiteConfig) -> Resources:
    """Return what the sites share; `SiteConfig.shared_config` makes ``site`` a cache key.

    The cache holds one entry: a process works for one run at a time, and a second data set would
    waste memory.
    """
    task = load_site_task(config, site)
    parts = task.partition(site.num_partitions) if site.partition_id >= 0 else None
    return Resources(task, parts)


def _progress_log() -> Callable[[Progress], None] | None:
    return _log_progress if os.environ.get(SITE_LOG) else None


def _log_progress(progress: Progress) -> None:
    site_event("progress", **asdict(progress))
