"""`Task`: data set, model and settings of a run, put together in one place for everyone."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from mdc_flower import __version__
from mdc_flower.batches import InputPipeline
from mdc_flower.config import RunConfig, SiteConfig
from mdc_flower.data import (
    CoordinatorData,
    DataSet,
    SiteData,
    coordinator_data,
    load_dataset,
    site_data,
)
from mdc_flower.data.partitions import Partition, PartitionSpec, partition
from mdc_flower.models import build_model, check_fits
from mdc_flower.numerics import pick_autocast_dtype, pick_device
from mdc_flower.training import TrainSettings


@dataclass(frozen=True)
class Task:
    """What the coordinator, a site, a baseline and an evaluation all need to agree on."""

    config: RunConfig
    dataset: DataSet
    device: torch.device
    settings: TrainSettings
    pipeline: InputPipeline

    def new_model(self) -> nn.Module:
        """Return the model with the initial weights of the run's seed, checked for the data.

        Raises
        ------
        ConfigError, ModelError
            See `build_model` and `check_fits`.
        """
        spec, classes = self.config.model, self.dataset.num_classes
        model = build_model(spec, self.dataset.input_shape, classes, self.config.seed)
        example = torch.from_numpy(self.dataset.train.inputs[:2].copy())
        check_fits(model, spec, self.pipeline(example, torch.device("cpu")), classes)
        return model

    def partition(self, num_sites: int) -> Partition:
        """Return the cut of the training examples into simulated sites."""
        c = self.config
        return partition(
            self.dataset.train,
            PartitionSpec(
                c.partition,
                num_sites,
                c.seed,
                c.partition_alpha,
                c.partition_shards,
                c.partition_size_ratio,
            ),
        )

    def coordinator_data(self, num_partitions: int) -> CoordinatorData:
        """Return what the coordinator evaluates on; 0 partitions means real sites."""
        parts = self.partition(num_partitions) if num_partitions else None
        return coordinator_data(
            self.dataset, parts, self.config.seed, self.config.validation_fraction
        )

    def site_data(self, site: SiteConfig) -> SiteData:
        """Return one site's own examples."""
        parts = self.partition(site.num_partitions) if site.partition_id >= 0 else None
        return site_data(
            self.dataset,
            parts,
            site.partition_id,
            self.config.seed,
            self.config.validation_fraction,
        )

    def model_metadata(self) -> dict[str, Any]:
        """Return what suffices to rebuild and use the model; no times and no paths."""
        return {
            "format": 1,
            "version": __version__,
            "model": self.config.model,
            "dataset": self.dataset.name,
            "input-shape": list(self.dataset.input_shape),
            "class-names": list(self.dataset.class_names),
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
        }


@lru_cache(maxsize=4)
def load_task(config: RunConfig, data: str = "", data_root: str = "", device: str = "") -> Task:
    """Return the task of a run; a site's own data set, root and device go before the run's.

    Raises
    ------
    ConfigError, DataError
        If the data set or the device cannot be had.
    """
    chosen = pick_device(device or config.device)
    dataset = load_dataset(
        data or config.dataset,
        data_root or config.data_root,
        config.image_size,
        config.max_train_examples,
        config.max_test_examples,
    )
    return Task(
        config=config,
        dataset=dataset,
        device=chosen,
        settings=TrainSettings(
            optimizer=config.optimizer,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            batch_size=config.batch_size,
            label_smoothing=config.label_smoothing,
            clip_norm=config.clip_norm,
            autocast_dtype=pick_autocast_dtype(config.precision, chosen),
            compile=config.compile,
        ),
        pipeline=InputPipeline.of(dataset, config.augment, config.channels_last),
    )
