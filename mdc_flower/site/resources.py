"""The client of a site, with the data that a process keeps between messages."""

import os
from collections.abc import Callable
from dataclasses import asdict

from mdc_flower.config import RunConfig, SiteConfig
from mdc_flower.console.site_log import SITE_LOG, site_event
from mdc_flower.jobs.run_task import load_site_run_task
from mdc_flower.site.client import SiteClient
from mdc_flower.training.loop import Progress
from mdc_flower.training.runtime import ONE, Runtime


def site_client(config: RunConfig, site: SiteConfig, runtime: Runtime = ONE) -> SiteClient:
    """Return the client of a site, reusing the shared data of this process.

    Raises
    ------
    ConfigError, DataError, ModelError
        See `load_site_run_task` and `RunTask.new_model`.
    """
    task = load_site_run_task(config, site.shared_config())
    return SiteClient(
        site.name,
        task.site_job(site),
        task.settings,
        task.device,
        _progress_log(),
        config.seed,
        config.batch_norm == "local",
        runtime=runtime,
        exchange=config.exchange,
        keep=config.keep,
    )


def _progress_log() -> Callable[[Progress], None] | None:
    return _log_progress if os.environ.get(SITE_LOG) else None


def _log_progress(progress: Progress) -> None:
    site_event("progress", **asdict(progress))
