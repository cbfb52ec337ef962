"""Evaluation of a global model on the coordinator's validation and test examples."""

from collections.abc import Iterator

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from torch import nn

from mdc_flower.config import read_site_config
from mdc_flower.jobs.run_task import RunTask
from mdc_flower.models.exchange import ALL
from mdc_flower.training.arrays import load_arrays
from mdc_flower.training.batch_norm import recalibrate
from mdc_flower.training.job import Job
from mdc_flower.training.loop import evaluate
from mdc_flower.training.numerics import repeatable
from strategies.exchange.metrics import Value
from strategies.exchange.records import record_views
from strategies.pending_evaluation import EvaluateFn


def evaluate_fn(task: RunTask, num_partitions: int) -> EvaluateFn:
    """Return the function that evaluates a global model on validation and test examples.

    With ``batch-norm = "local"``, a global model has no BatchNorm statistics. In a simulation it is
    evaluated with the statistics of each site in turn, and the metrics are the unweighted mean over
    the sites. The coordinator does not know the statistics of real sites, and returns no metrics.
    Nor does it if the sites keep arrays of their own (``keep``): only they have whole models.

    Parameters
    ----------
    task
        The run's task. Each evaluation builds a new model, so that it cannot affect the next.
    num_partitions
        Number of simulated sites; 0 if the sites are real.
    """
    if task.config.keep:
        return lambda round_number, arrays: MetricRecord()
    job = task.coordinator_job(num_partitions)

    def evaluate_global(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        model = job.model()
        part = None if task.config.exchange == ALL else list(arrays)
        load_arrays(model, record_views(arrays), part)
        del arrays  # free the record, if nobody else uses it
        with repeatable(task.config.threads_per_site, task.device):
            if task.config.batch_norm != "local":
                return MetricRecord({**_metrics(task, model, job)})
            by_site = [
                _metrics(task, model, job)
                for _ in _with_each_sites_statistics(task, model, num_partitions)
            ]
        return MetricRecord(
            {
                name: np.mean([metrics[name] for metrics in by_site], axis=0).tolist()
                for name in (by_site[0] if by_site else ())
            }
        )

    return evaluate_global


def _metrics(task: RunTask, model: nn.Module, job: Job) -> dict[str, Value]:
    metrics: dict[str, Value] = {}
    for split in ("validation", "test"):
        if job.size(split) != 0:
            found = evaluate(model, job, split, task.device, task.settings.autocast_dtype)
            metrics[f"{split}-loss"] = found.loss
            metrics |= {f"{split}-{name}": value for name, value in found.metrics.items()}
    return metrics


def _with_each_sites_statistics(
    task: RunTask, model: nn.Module, num_partitions: int
) -> Iterator[None]:
    """Give the model each simulated site's statistics in turn, computed as the site does."""
    for number in range(num_partitions):
        site = read_site_config({"partition-id": number, "num-partitions": num_partitions})
        recalibrate(
            model,
            task.site_job(site),
            task.device,
            task.settings.autocast_dtype,
            task.config.seed,
            site.name,
        )
        yield
