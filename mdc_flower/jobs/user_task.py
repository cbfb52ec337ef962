"""`UserTask`: a run whose job is a function of the user's: ``job = "module:function"``."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mdc_flower import __version__
from mdc_flower.common.references import load_reference, relative_paths_explained
from mdc_flower.common.seeded import seeded
from mdc_flower.common.user_code import user_code
from mdc_flower.config import RunConfig, SiteConfig
from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.initial_model import initialized
from mdc_flower.jobs.read_keys import unread_keys, watched
from mdc_flower.jobs.signature import signature_of
from mdc_flower.training.batch_norm import INITIAL, STATISTICS_KEY, check_policy
from mdc_flower.training.job import Job
from mdc_flower.training.loop import TrainSettings
from mdc_flower.training.model_trial import try_job
from strategies.common.errors import ConfigError, ModelError
from strategies.common.seeds import derive_seed
from strategies.exchange.metrics import NAME, TRAIN, Metric


@dataclass(frozen=True)
class UserTask:
    """A run's job, built by a user's function of a `JobContext`."""

    reference: str
    context: JobContext
    device: torch.device
    settings: TrainSettings

    @property
    def config(self) -> RunConfig:
        """The run config."""
        return self.context.config

    @property
    def job(self) -> Job:
        """The job at the place of the context; see `build_job`."""
        job, _ = build_job(self.reference, self.context)
        return _SeededJob(job, self.config.seed)

    def unread_keys(self, config: RunConfig) -> list[str]:
        """Return the keys of data and model that a config sets, but the job has not read so far."""
        _, read = build_job(self.reference, self.context)
        return unread_keys(config, read)

    @property
    def metrics(self) -> Sequence[Metric]:
        """The job's metrics."""
        return self.job.metrics

    @property
    def signature(self) -> dict[str, str]:
        """What coordinator and sites must agree on about the job."""
        return signature_of(self.job)

    @cached_property
    def new_model(self) -> Callable[[], nn.Module]:
        """The function that builds the model with initial weights from the run's seed."""
        build = self.job.model
        self._check_policy(build())
        return build

    def check_model(self) -> None:
        """Check that the job can train its model for a step, before a run begins.

        Raises
        ------
        ConfigError, ModelError
            If the job cannot be built, or see `try_job` and `initialized`.
        """
        settings = replace(self.settings, autocast_dtype=None, compile=False)
        job, counts_steps = self.job, self.config.unit == "steps"
        try_job(job, settings, counts_steps, self.config.exchange, self.config.keep)
        self._check_policy(job.model())
        if not self.config.resume:
            initialized(job.model(), self.config)

    def _check_policy(self, model: nn.Module) -> None:
        config = self.config
        check_policy(model, self.reference, config.batch_norm, config.exchange, config.keep)

    def partition_sha256(self, num_sites: int) -> str:
        """Return a digest of how simulated sites share the data: by their number and the seed."""
        return hashlib.sha256(f"{num_sites} {self.config.seed}".encode()).hexdigest()

    @property
    def data_form(self) -> str:
        """Nothing: the signature says what coordinator and sites agree on."""
        return ""

    @property
    def data_sha256(self) -> str:
        """A digest of the coordinator's training examples; empty if it has none."""
        job = self.job
        return job.fingerprint() if job.size("train") else ""

    @property
    def remarks(self) -> list[str]:
        """Nothing: only the job knows its data."""
        return []

    def facts(self, num_partitions: int) -> dict[str, Any]:
        """Return what a run records about its data."""
        if not num_partitions:
            return {}
        return {"partition": {"sha256": self.partition_sha256(num_partitions)}}

    def summary(self) -> dict[str, Any]:
        """Return what a run's summary says about the job."""
        return {}

    def coordinator_job(self, num_partitions: int) -> Job:
        """Return the job with which the coordinator evaluates global models."""
        return self.job

    def site_job(self, site: SiteConfig) -> Job:
        """Return the job of a site; a simulated one has its own rows of the data."""
        return replace(self, context=context_of(self.config, site)).job

    def pooled_job(self, num_partitions: int) -> Job:
        """Return the coordinator's job: `JobContext.rows` gives it the rows of all sites."""
        return self.job

    def model_metadata(self) -> dict[str, Any]:
        """Return the metadata for rebuilding the model, without times and paths."""
        about = {STATISTICS_KEY: INITIAL} if self.config.batch_norm == "local" else {}
        return {
            "format": 1,
            "version": __version__,
            "job": self.reference,
            "seed": self.config.seed,
            **about,
        }


@lru_cache(maxsize=128)
def build_job(reference: str, context: JobContext) -> tuple[Job, set[str]]:
    """Return the job that a user's function builds, and the fields of the config that it reads.

    The last few jobs are kept. A job may read a field later, in training; it is then added.

    Parameters
    ----------
    reference
        The function, as ``module:function``.
    context
        What the function is told.

    Raises
    ------
    ConfigError
        If the function cannot be imported, raises an exception, or returns no job.
    """
    function = load_reference(reference, "job")
    context, read = watched(context)
    with (
        user_code(ConfigError, "the job cannot be built", where="job", got=reference),
        relative_paths_explained(reference, "job"),
        seeded(derive_seed(context.config.seed, "job")),
    ):
        job = function(context)
    if missing := [name for name in _PARTS if not hasattr(job, name)]:
        raise ConfigError(
            f"the function did not return a job: it has no {missing[0]!r}",
            where="job",
            got=f"{type(job).__name__} from {reference}",
            expected="a Job, such as torch_job(...) returns",
        )
    _check_metrics(job.metrics, reference)
    return job, read


_PARTS = (
    "metrics", "model", "prepare", "batches", "size", "fingerprint", "steps_per_epoch", "forward",
    "optimizer",
)  # fmt: skip


def context_of(config: RunConfig, site: SiteConfig) -> JobContext:
    """Return the context of a site's job."""
    return JobContext(
        config,
        site.name,
        site.data or config.dataset,
        site.data_root or config.data_root,
        site.partition_id,
        site.num_partitions,
    )


class _SeededJob:
    """A job whose models are in float32, with initial weights that depend on the seed alone."""

    def __init__(self, job: Job, seed: int) -> None:
        self._job, self._seed = job, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def model(self) -> nn.Module:
        with seeded(derive_seed(self._seed, "model")):
            model = self._job.model()
        if not isinstance(model, nn.Module):
            raise ModelError(
                "the job's model is not a module", where="job", got=type(model).__name__
            )
        if name := next((n for n, of in model.named_parameters() if is_lazy(of)), ""):
            raise ModelError(
                "a lazy layer has no shape and no weights yet",
                where="job",
                got=name,
                hint="Run the model on a made-up batch in the job's function, or use a layer that "
                "is not lazy",
            )
        return model.float()


def _check_metrics(metrics: Sequence[Metric], reference: str) -> None:
    """Refuse metrics with unusable names, or more than one that selects the best model."""
    names = [metric.name for metric in metrics]
    for problem in _problems(metrics, names):
        raise ConfigError(problem, where="job, metrics", got=names, hint=f"See {reference}")


def _problems(metrics: Sequence[Metric], names: list[str]) -> Iterator[str]:
    if "loss" not in names:
        yield "the loss is not among the metrics"
    for name in names:
        if not NAME.fullmatch(TRAIN + name):
            yield f"{name!r} must consist of lower-case letters, digits and hyphens"
        if names.count(name) > 1:
            yield f"there are two metrics {name!r}"
    if sum(metric.selects for metric in metrics) > 1:
        yield "more than one metric selects the best model"
