"""`RunTask`: what a run needs of its job, whether it is the default or the user's."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from mdc_flower.config import CLASSIFICATION_JOB, RunConfig, SiteConfig
from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.task import check_modules, load_site_task, load_task, train_settings
from mdc_flower.jobs.user_task import UserTask, context_of
from mdc_flower.training.job import Job
from mdc_flower.training.loop import TrainSettings
from mdc_flower.training.numerics import pick_device
from strategies.common.errors import ConfigError
from strategies.exchange.metrics import Metric, SiteMetrics


class RunTask(Protocol):
    """The job and the settings that coordinator and sites share."""

    @property
    def config(self) -> RunConfig:
        """The run config."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    @property
    def settings(self) -> TrainSettings:
        """How to train."""
        ...

    @property
    def metrics(self) -> Sequence[Metric]:
        """The job's metrics, the loss among them."""
        ...

    @property
    def signature(self) -> dict[str, str]:
        """What coordinator and sites must agree on about the job."""
        ...

    @property
    def new_model(self) -> Callable[[], nn.Module]:
        """The function that builds the model with its initial weights."""
        ...

    def check_model(self) -> None:
        """Check that the model can be trained, averaged and stored, before a run begins."""
        ...

    def unread_keys(self, config: RunConfig) -> list[str]:
        """Return the keys of data and model that a config sets, but the job has not read so far."""
        ...

    def partition_sha256(self, num_sites: int) -> str:
        """Return a digest of how this number of simulated sites share the data."""
        ...

    @property
    def data_form(self) -> str:
        """What sites and coordinator must agree on about the data; empty if the job says it."""
        ...

    @property
    def data_sha256(self) -> str:
        """A digest of the contents of the data; empty if it is not known."""
        ...

    @property
    def remarks(self) -> list[str]:
        """What may be wrong with the data, a line each."""
        ...

    def facts(self, num_partitions: int) -> dict[str, Any]:
        """Return what a run records about its data; 0 partitions means that sites are real."""
        ...

    def summary(self) -> dict[str, Any]:
        """Return what a run's summary says about the job."""
        ...

    def coordinator_job(self, num_partitions: int) -> Job:
        """Return the job with the coordinator's validation and test examples."""
        ...

    def site_job(self, site: SiteConfig) -> Job:
        """Return the job with a site's training and validation examples."""
        ...

    def pooled_job(self, num_partitions: int) -> Job:
        """Return the job with the training examples of all simulated sites together."""
        ...

    def model_metadata(self) -> dict[str, Any]:
        """Return the metadata for rebuilding and using the model."""
        ...


def load_run_task(config: RunConfig) -> RunTask:
    """Return the task of a run for the coordinator.

    Raises
    ------
    ConfigError, DataError
        If the data set, the device or the job's module is not available.
    """
    if config.job == CLASSIFICATION_JOB:
        return load_task(config)
    context = JobContext(config, data=config.dataset, data_root=config.data_root)
    return _user_task(config.job, context, config.device)


def load_site_run_task(config: RunConfig, site: SiteConfig) -> RunTask:
    """Return the task of a site, whose job, data set, root and device override the run's.

    All simulated sites of a process share one data set if given their `SiteConfig.shared_config`.

    Raises
    ------
    ConfigError, DataError
        If the data set, the device or the job's module is not available or not allowed, or if the
        site's config names a metric that the job does not have.
    """
    job = site.job or config.job
    if job == CLASSIFICATION_JOB:
        task: RunTask = load_site_task(config, site)
    else:
        if not site.job:
            check_modules({"job": job}, site)
        context = context_of(config, site)
        task = _user_task(job, context, site.device or config.device, site.micro_batch_size)
    _check_shared(task, site)
    return task


def _user_task(job: str, context: JobContext, device: str, micro_batch_size: int = 0) -> UserTask:
    chosen = pick_device(device)
    settings = train_settings(context.config, chosen, micro_batch_size)
    return UserTask(job, context, chosen, settings)


def _check_shared(task: RunTask, site: SiteConfig) -> None:
    """Refuse a site's list of metrics that names one which the job does not have."""
    if not site.metric_names:
        return  # and the job need not be built, which may read the data of another simulated site
    known = SiteMetrics(task.metrics).names
    if unknown := sorted(set(site.metric_names) - known):
        raise ConfigError(
            "the site may send a metric that the job does not have",
            where="node config, metrics",
            got=unknown[0],
            expected=f"one of: {', '.join(sorted(known))}",
        )
