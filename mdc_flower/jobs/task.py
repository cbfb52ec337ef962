"""`Task`: data set, model and settings of a run, put together in one place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mdc_flower import __version__
from mdc_flower.common.cores import usable_cores
from mdc_flower.config import RunConfig, SiteConfig
from mdc_flower.data import (
    CoordinatorData,
    DataSet,
    Examples,
    Part,
    SiteData,
    coordinator_data,
    input_form,
    load_dataset,
    site_data,
)
from mdc_flower.data import registry as data
from mdc_flower.data.contract import CONTRACT, Contract, read_contract
from mdc_flower.data.identity import content_sha256, form_of
from mdc_flower.data.owners import refuse_shared_owners
from mdc_flower.data.partitions import Partition, PartitionSpec, partition
from mdc_flower.data.readers.own_keys import OwnKeys
from mdc_flower.data.registry import makes_vocabulary, no_vocabulary
from mdc_flower.data.remarks import remarks
from mdc_flower.jobs.classification import ClassificationJob
from mdc_flower.jobs.initial_model import initialized
from mdc_flower.models import build as models
from mdc_flower.models import build_model, check_fits
from mdc_flower.training.batch_norm import INITIAL, STATISTICS_KEY, check_policy
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import TrainSettings
from mdc_flower.training.model_trial import try_model
from mdc_flower.training.numerics import pick_autocast_dtype, pick_device
from strategies.common.errors import ConfigError
from strategies.common.seeds import derive_seed
from strategies.exchange.metrics import Metric

RUNS = OwnKeys()
"""The run's own reading of its data."""


@dataclass(frozen=True)
class Task:
    """The data set and settings that coordinator, sites, baselines and evaluations share."""

    config: RunConfig
    dataset: DataSet
    device: torch.device
    settings: TrainSettings
    pipeline: InputPipeline

    @cached_property
    def new_model(self) -> Callable[[], nn.Module]:
        """The function that builds the model with initial weights from the run's seed.

        Every call builds the model from scratch, as a new process would, because a copy of a used
        model could differ in ways that its arrays do not show. The first access checks that the
        model fits the data.

        Raises
        ------
        ConfigError, ModelError
            See `build_model`, `check_fits` and `check_policy`.
        """
        spec, data = self.config.model, self.dataset
        build = partial(
            build_model, spec, data.input_shape, data.num_classes, self.config.seed, data.num_tokens
        )
        model = build()
        inputs = data.train.inputs
        # Only shapes matter here, so zeros replace the examples.
        example = torch.from_numpy(np.zeros((2, *inputs.shape[1:]), inputs.dtype))
        batch = self.pipeline(example, torch.device("cpu"))
        check_fits(model, spec, batch, data.num_classes, self.pipeline.channels_last)
        config = self.config
        check_policy(model, spec, config.batch_norm, config.exchange, config.keep)
        return build

    def job(self, splits: Mapping[str, Examples | Part]) -> ClassificationJob:
        """Return the training job on these examples, by the name of their split.

        Raises
        ------
        ConfigError, ModelError
            See `new_model`.
        """
        tensors = {name: Tensors.of(examples) for name, examples in splits.items()}
        return ClassificationJob(self.new_model, tensors, self.settings, self.pipeline)

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics of a classification."""
        return ClassificationJob.metrics

    @property
    def signature(self) -> dict[str, str]:
        """Nothing: the contract of the data says what coordinator and sites agree on."""
        return {}

    def check_model(self) -> None:
        """Check that the model can be trained, averaged and stored, before a run begins.

        Raises
        ------
        ConfigError, ModelError
            See `new_model`, `try_model` and `initialized`.
        """
        settings = replace(self.settings, batch_size=2, autocast_dtype=None, compile=False)
        examples = {"train": two_examples(self.dataset)}
        job = ClassificationJob(self.new_model, examples, settings, self.pipeline)
        try_model(job, settings, self.config.exchange, self.config.keep)
        if not self.config.resume:
            initialized(self.new_model(), self.config)

    def unread_keys(self, config: RunConfig) -> list[str]:
        """Return no keys: data and model are those of the config."""
        return []

    def partition(self, num_sites: int) -> Partition:
        """Return the partition of the training examples into simulated sites."""
        if num_sites not in self._partitions:
            c = self.config
            spec = PartitionSpec(
                c.partition,
                num_sites,
                c.seed,
                c.partition_alpha,
                c.partition_shards,
                c.partition_size_ratio,
            )
            self._partitions[num_sites] = partition(self.dataset.train, spec)
        return self._partitions[num_sites]

    @cached_property
    def _partitions(self) -> dict[int, Partition]:
        """The partitions that were made before, by number of sites."""
        return {}

    def coordinator_data(self, num_partitions: int) -> CoordinatorData:
        """Return the coordinator's examples; 0 partitions means that the sites are real."""
        parts = self.partition(num_partitions) if num_partitions else None
        return coordinator_data(
            self.dataset, parts, self.config.seed, self.config.validation_fraction
        )

    def site_data(self, site: SiteConfig) -> SiteData:
        """Return the examples of one site."""
        parts = self.partition(site.num_partitions) if site.partition_id >= 0 else None
        return site_data(
            self.dataset,
            parts,
            site.partition_id,
            self.config.seed,
            self.config.validation_fraction,
        )

    def partition_sha256(self, num_sites: int) -> str:
        """Return the digest of the partition."""
        return self.partition(num_sites).sha256

    @cached_property
    def data_form(self) -> str:
        """What sites and coordinator must agree on about the data, in short digests."""
        return form_of(self.dataset)

    @cached_property
    def data_sha256(self) -> str:
        """A digest of the contents of the data set."""
        return content_sha256(self.dataset)

    @property
    def remarks(self) -> list[str]:
        """What may be wrong with the data, a line each; nothing for data without examples."""
        return remarks(self.dataset) if len(self.dataset.train) else []

    @cached_property
    def _input_form(self) -> dict[str, Any]:
        """The metadata about raw inputs; a vocabulary that the run makes is made again for it."""
        config = self.config
        return input_form.described(
            config.dataset, config.data_root, config.reading(), self.dataset
        )

    def facts(self, num_partitions: int) -> dict[str, Any]:
        """Return what a run records about its data; 0 partitions means that sites are real."""
        if not num_partitions or not len(self.dataset.train):
            return {}
        cut = self.partition(num_partitions)
        histogram = cut.histogram(self.dataset.train.labels, self.dataset.num_classes)
        return {"partition": {"sha256": cut.sha256, "label-histogram": histogram}}

    def summary(self) -> dict[str, Any]:
        """Return what a run's summary says about the data set."""
        return {"class-names": list(self.dataset.class_names)}

    def coordinator_job(self, num_partitions: int) -> ClassificationJob:
        """Return the job with the coordinator's validation and test examples."""
        # A coordinator without data cannot partition it, and does not need to.
        held = self.coordinator_data(num_partitions if len(self.dataset.train) else 0)
        return self.job({"validation": held.validation, "test": held.test})

    def site_job(self, site: SiteConfig) -> ClassificationJob:
        """Return the job with a site's training and validation examples."""
        data = self.site_data(site)
        return self.job({"train": data.train, "validation": data.validation})

    def pooled_job(self, num_partitions: int) -> ClassificationJob:
        """Return the job with the training examples of all simulated sites together."""
        return self.job({"train": self.coordinator_data(num_partitions).pooled})

    def model_metadata(self) -> dict[str, Any]:
        """Return the metadata for rebuilding and using the model, without times and paths."""
        about = {STATISTICS_KEY: INITIAL} if self.config.batch_norm == "local" else {}
        return {
            "format": 1,
            "version": __version__,
            "model": self.config.model,
            "dataset": self.dataset.name,
            "input-shape": list(self.dataset.input_shape),
            "class-names": list(self.dataset.class_names),
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            "num-tokens": self.dataset.num_tokens,
            "seed": self.config.seed,
            "vocabulary": self.dataset.vocabulary,
            **self._input_form,
            **about,
        }


@lru_cache(maxsize=4)
def load_task(config: RunConfig) -> Task:
    """Return the task of a run for the coordinator and every simulated site.

    Raises
    ------
    ConfigError, DataError
        If the data set or the device is not available.
    """
    spec, root = config.dataset, config.data_root
    contract = _run_contract(config)
    if contract is None or spec.startswith(CONTRACT):
        return _task(config, _dataset(config, spec, root), config.device)
    whole = load_dataset(spec, root, contract.reading(config.reading()))
    dataset = contract.kept_by(whole.checked()).limited(
        config.max_train_examples, config.max_test_examples
    )
    return _task(config, dataset, config.device)


@lru_cache(maxsize=4)
def load_site_task(config: RunConfig, site: SiteConfig) -> Task:
    """Return the task of a site, whose data set, root and device override the run's.

    Raises
    ------
    ConfigError, DataError
        If the data set or the device is not available, or if the data set violates the site's
        contract.
    """
    spec, root = site.data or config.dataset, site.data_root or config.data_root
    named = {"model": models.user_module(config.model)}
    if not site.data:
        named["dataset"] = data.user_module(config.dataset)
    check_modules(named, site)
    if spec.startswith(CONTRACT):
        raise ConfigError(
            "this site has no data set",
            where="node config, data",
            hint="The run's own data set is a contract, which contains no examples",
        )
    vocabulary = site.vocabulary or config.vocabulary
    if vocabulary != config.vocabulary:
        config = config.model_copy(update={"vocabulary": vocabulary})
    contract = _contract(config, site)
    if contract is None:
        dataset = _dataset(config, spec, root, site)
        _check_vocabulary(spec, dataset, config, site)
    else:
        # A site's promise covers its whole data set, even if the run uses only part of it.
        # Files are read into the agreed shape, whatever their own shape.
        whole = load_dataset(spec, root, contract.reading(site.reading(config.reading())))
        _check_vocabulary(spec, whole, config, site)
        dataset = contract.kept_by(whole, site.min_examples, site.max_examples).limited(
            config.max_train_examples, config.max_test_examples
        )
    return _task(config, dataset, site.device or config.device, site.micro_batch_size)


def threads_of(config: RunConfig, site: SiteConfig) -> int:
    """Return the number of CPU threads of a site.

    A simulated site shares its machine with others, so the run sets the number. A real site uses
    all cores of its machine unless its own config sets a number.
    """
    return config.threads_per_site if site.is_simulated else site.threads or usable_cores()


def check_modules(named: Mapping[str, str], site: SiteConfig) -> None:
    """Refuse a run whose modules, by config key, this site does not allow."""
    for key, module in named.items():
        module = module.partition(":")[0]
        if module and not site.allows(module):
            raise ConfigError(
                "the run names a module that this site does not allow",
                where=f"run config, {key}",
                got=module,
                expected=f"one of: {site.modules}" if site.modules else "none",
                hint="If you trust the module, allow it with `modules` in the site's config",
            )


def _check_vocabulary(spec: str, dataset: DataSet, config: RunConfig, site: SiteConfig) -> None:
    """Refuse a real site's own vocabulary; simulated sites share one data set."""
    if site.partition_id < 0 and makes_vocabulary(spec, dataset, config.reading()):
        raise no_vocabulary("node config, vocabulary")


def agreed_form(config: RunConfig, site: SiteConfig) -> str:
    """Return the form of a site's data that its contract says; empty if there is no contract."""
    contract = _contract(config, site)
    return form_of(contract.data_set()) if contract else ""


def _contract(config: RunConfig, site: SiteConfig) -> Contract | None:
    """Return the contract for a site's data; its own contract must equal the run's."""
    own = read_contract(Path(site.contract)) if site.contract else None
    runs = _run_contract(config)
    if runs is None:
        return own
    if own is not None and own != runs:
        raise ConfigError(
            "the run's data contract differs from the one that this site has agreed to",
            where="node config, contract",
            got=runs.to_spec(),
            expected=own.to_spec(),
            hint="Ask the coordinator for the current contract",
        )
    return runs


def _run_contract(config: RunConfig) -> Contract | None:
    """Return the contract that the run config contains; None if it contains none."""
    spec = config.contract or config.dataset
    return Contract.from_spec(spec) if spec.startswith(CONTRACT) else None


def _dataset(config: RunConfig, spec: str, data_root: str, own: OwnKeys = RUNS) -> DataSet:
    reading = own.reading(config.reading())
    return load_dataset(
        spec, data_root, reading, config.max_train_examples, config.max_test_examples
    )


def _task(config: RunConfig, dataset: DataSet, device: str, micro_batch_size: int = 0) -> Task:
    chosen = pick_device(device)
    if config.partition != "natural-id":
        refuse_shared_owners(dataset)
    return Task(
        config=config,
        dataset=dataset,
        device=chosen,
        settings=train_settings(config, chosen, micro_batch_size),
        pipeline=InputPipeline.of(dataset, config.augment, config.channels_last),
    )


def train_settings(
    config: RunConfig, device: torch.device, micro_batch_size: int = 0
) -> TrainSettings:
    """Return how to train on a device; a site may have its own size of a micro-batch."""
    return TrainSettings(
        optimizer=config.optimizer,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
        micro_batch_size=micro_batch_size or config.micro_batch_size,
        label_smoothing=config.label_smoothing,
        clip_norm=config.clip_norm,
        autocast_dtype=pick_autocast_dtype(config.precision, device),
        compile=config.compile,
    )


def two_examples(data: DataSet) -> Tensors:
    """Return the first and the last training example; random examples if there are none."""
    inputs, labels = data.train.inputs, data.train.labels
    if len(labels):
        rows = [0, -1]
        return Tensors(torch.from_numpy(inputs[rows]), torch.from_numpy(labels[rows]))
    generator = np.random.default_rng(derive_seed(0, "trial"))
    shape = (2, *data.input_shape)
    if inputs.dtype == np.float32:
        drawn: NDArray[np.generic] = generator.random(shape, np.float32)
    else:
        largest = 255 if inputs.dtype == np.uint8 else max(0, data.num_tokens - 1)
        drawn = generator.integers(0, largest, shape, inputs.dtype, endpoint=True)
    return Tensors(torch.from_numpy(drawn), torch.zeros(2, dtype=torch.int64))
