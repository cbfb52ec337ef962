"""Check that a comparison can be run, before any training."""

from collections.abc import Sequence

import torch

from mdc_flower.config import CLASSIFICATION_JOB, RunConfig
from mdc_flower.jobs.run_task import RunTask, load_run_task
from mdc_flower.training.job import Pass
from mdc_flower.training.micro_batches import length_of
from simulations.compare.arm import Arm
from simulations.compare.comparison_file import Comparison, check_seeds
from simulations.compare.course import pooled_task, simulated_sites
from simulations.compare.equal_budgets import configs_of
from simulations.compare.flower_fedavg import check_flowers_fedavg
from strategies.common.errors import ConfigError


def check(comparison: Comparison, arms: Sequence[Arm], split: str) -> RunTask:
    """Check that all data load and all models build; return the task of the first arm.

    This also fills the cache of decoded data for the workers.

    Parameters
    ----------
    split
        The split whose metrics are reported.

    Raises
    ------
    ConfigError, DataError, ModelError
        If budgets are not equal, the job cannot be trained, the job has no examples for the
        comparison, or an arm does not suit the job.
    """
    check_seeds(comparison)
    configs = configs_of(comparison, arms)
    if comparison.in_tuning.config != comparison.config:
        configs_of(comparison.in_tuning, arms)
    for arm in arms:
        for config in configs[arm.key]:
            _check_arm(arm, config)
        load_run_task(configs[arm.key][0]).check_model()
        _check_read(arm, configs[arm.key], set(comparison.config))
    task = load_run_task(configs[arms[0].key][0])
    for needed in {split, "validation"} if comparison.tuning else {split}:
        _check_held_out(task, needed)
    _check_pooled(task)
    return task


def _check_arm(arm: Arm, config: RunConfig) -> None:
    if arm.table.kind == "ensemble" and config.job != CLASSIFICATION_JOB:
        raise ConfigError(
            "an ensemble averages the probabilities of classes, which this job does not have",
            where=f"arm {arm.key}, kind",
            got=f"ensemble, for the job {config.job}",
            hint="Leave this arm out of the comparison",
        )
    if arm.table.kind == "flower-fedavg":
        check_flowers_fedavg(config, f"arm {arm.key}")
    if arm.table.protocol == "equal-steps" and config.job != CLASSIFICATION_JOB:
        _check_batches(arm, config)
    if config.keep:
        raise ConfigError(
            "arms are evaluated at the coordinator, which has no whole model with this key",
            where=f"arm {arm.key}, keep",
            got=config.keep,
            expected="empty",
            hint="The histories of such runs have the sites' own evaluations, `site_evaluation`",
        )


def _check_read(arm: Arm, configs: Sequence[RunConfig], shared: set[str]) -> None:
    """Raise ConfigError if what makes an arm or candidate differ has no effect on a user's job."""
    task = load_run_task(configs[0])
    for config in configs:
        for key in task.unread_keys(config):
            if key not in shared:
                raise ConfigError(
                    "the job does not read this key, so the arm is not what it says",
                    where=f"arm {arm.key}, {key}",
                    got=config.to_flower()[key],
                    hint=f"Let the job use context.config.{key.replace('-', '_')}, or leave the "
                    "key or the arm out",
                )


def _check_held_out(task: RunTask, split: str) -> None:
    """Raise ConfigError if the coordinator cannot evaluate global models on this split."""
    if task.coordinator_job(task.config.num_sites).size(split) == 0:
        other = "validation" if split == "test" else "test"
        raise ConfigError(
            f"the job has no {split} examples at the coordinator",
            where="job",
            got=task.config.job,
            expected=f"{split} examples in the job of a context without a site",
            hint=f"To report another split: --split {other}",
        )


def _check_batches(arm: Arm, config: RunConfig) -> None:
    """Raise ConfigError if a user's job does not make batches of the size that it is told."""
    job = pooled_task(config, arm.table.protocol).pooled_job(config.num_sites)
    generator = torch.Generator().manual_seed(0)
    batch = next(iter(job.batches(Pass("train", torch.device("cpu"), generator))))
    size, expected = job.size("train"), config.num_sites * config.batch_size
    if length_of(batch) != (expected if size is None else min(expected, size)):
        raise ConfigError(
            "the job does not make batches of batch-size examples, so this arm cannot have "
            "batches that are num-sites times as large",
            where=f"arm {arm.key}, protocol",
            got=f"{length_of(batch)} examples in a batch",
            expected=str(expected),
            hint="Let the job use context.config.batch_size, or leave this arm out",
        )


def _check_pooled(task: RunTask) -> None:
    """Raise ConfigError unless the pooled training examples are as many as those of all sites.

    The sites' examples are parts of the pooled ones if the job takes the rows that its context
    names; a classification does so by construction. Streams cannot be counted.
    """
    config = task.config
    pooled = task.pooled_job(config.num_sites).size("train")
    may_be_stream = config.unit == "steps"
    if pooled == 0 or (pooled is None and not may_be_stream):
        raise ConfigError(
            "the job has no training examples at the coordinator",
            where="job",
            got=f"{config.job}, which has {'a stream' if pooled is None else 'none'}",
            expected="the examples of all sites in the job of a context without a site",
            hint="context.rows(n) returns all rows there; a stream needs step-budget in [config]",
        )
    if config.job == CLASSIFICATION_JOB:
        return
    by_site = [task.site_job(site).size("train") for site in simulated_sites(config)]
    if pooled is None and by_site == [None] * config.num_sites:
        return
    if sum(size or 0 for size in by_site) != pooled:
        raise ConfigError(
            "the sites together do not have the training examples of centralized training",
            where="job",
            got=f"{'a stream' if pooled is None else pooled} at the coordinator, and {by_site} "
            "examples at the sites",
            expected="equal numbers, or streams everywhere",
            hint="Hold validation and test examples out first, the same at every site, and give "
            "each site its context.rows of the rest",
        )
