"""A digest of a run's data, to tell which data a result belongs to."""

import hashlib

import torch

from mdc_flower.common.array_digests import add_array
from mdc_flower.common.digests import add_to_digest
from mdc_flower.common.seeded import seeded
from mdc_flower.config import CLASSIFICATION_JOB, RunConfig
from mdc_flower.data import Examples, load_dataset
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.training.job import Job, Pass
from simulations.results.outcome import SPLITS


def data_digest(config: RunConfig) -> str:
    """Return the SHA-256, in hex, of a config's examples before they are partitioned into sites.

    The partition follows from the examples and the config. File locations do not matter. Of the
    training examples of a user's job, it covers what the job's fingerprint covers.

    Raises
    ------
    ConfigError, DataError
        See `load_dataset` and `load_run_task`.
    """
    if config.job != CLASSIFICATION_JOB:
        task = load_run_task(config)
        return _job_digest(
            task.pooled_job(config.num_sites), task.coordinator_job(config.num_sites)
        )
    dataset = load_dataset(
        config.dataset,
        config.data_root,
        config.reading(),
        config.max_train_examples,
        config.max_test_examples,
    )
    about = (list(dataset.class_names), [*map(float, dataset.mean)], [*map(float, dataset.std)])
    digest = hashlib.sha256(repr(about).encode())
    for examples in dataset.splits.values():
        _add(digest, examples)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", examples: Examples) -> None:
    for array in (examples.inputs, examples.labels):
        add_array(digest, array)
    if examples.groups is not None:
        digest.update("\0".join(map(str, examples.groups.tolist())).encode())


def _job_digest(pooled: Job, held: Job) -> str:
    """Return a digest of the fingerprint of the training examples, and of all that are held out."""
    digest = hashlib.sha256(f"{pooled.size('train')} {pooled.fingerprint()}".encode())
    for split in SPLITS:
        digest.update(f"{split} {held.size(split)}".encode())
        if held.size(split):
            with seeded(0):  # a data set may augment its examples
                for batch in held.batches(Pass(split, torch.device("cpu"))):
                    add_to_digest(digest, batch)
    return digest.hexdigest()
