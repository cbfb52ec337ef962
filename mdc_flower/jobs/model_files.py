"""Rebuild a run's model from its file, and evaluate it on a test set."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mdc_flower.common.config_files import read_arm
from mdc_flower.common.local_work import of_this_version
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.data import DataSet, load_dataset
from mdc_flower.data.contract import CONTRACT, Contract
from mdc_flower.data.evaluation_sets import load_test_set
from mdc_flower.data.input_form import InputForm
from mdc_flower.data.readers.options import Reading
from mdc_flower.jobs.class_figures import class_figures
from mdc_flower.jobs.classification import ClassificationJob, class_probabilities
from mdc_flower.jobs.run_task import RunTask, load_run_task
from mdc_flower.models import build_model
from mdc_flower.models.exchange import (
    ALL,
    base_digests,
    base_of,
    check_base,
    exchanged_names,
)
from mdc_flower.training.arrays import load_arrays
from mdc_flower.training.batch_norm import INITIAL, STATISTICS_KEY, check_policy, recalibrate
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import TrainSettings, evaluate
from mdc_flower.training.numerics import pick_autocast_dtype, pick_device, repeatable
from strategies.aggregation.averaging import Arrays
from strategies.common.errors import ConfigError, DataError
from strategies.common.files import finite
from strategies.exchange.metrics import numbers
from strategies.storage.model_files import read_model
from strategies.storage.run_directory import BEST_MODEL, CONFIG, GLOBAL_MODEL, read_summary


def model_file(path: Path, best: bool) -> Path:
    """Return a model file: ``path``, or the last or best model of the run directory there."""
    return path if path.is_file() else path / (BEST_MODEL if best else GLOBAL_MODEL)


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model in a file, in evaluation mode, and the file's metadata.

    Raises
    ------
    RunError
        If the file is missing or damaged.
    ModelError
        If its architecture cannot be built here, or if the arrays that are not in the file, because
        the run did not exchange them, are built differently here.
    ConfigError
        If each site has arrays of its own.
    """
    arrays, metadata = read_model(path)
    _find_users_modules(path)
    if "job" in metadata:
        task = load_run_task(_config_of_job(path, metadata))
        return _filled(task.new_model(), arrays, metadata, path), metadata
    shape, classes = tuple(metadata["input-shape"]), len(metadata["class-names"])
    # Files of earlier versions contain neither the number of tokens, which was 0, nor the seed,
    # which decides what a model draws in addition to its arrays when it is built.
    num_tokens, seed = metadata.get("num-tokens", 0), metadata.get("seed", 0)
    model = build_model(metadata["model"], shape, classes, seed, num_tokens)
    return _filled(model, arrays, metadata, path), metadata


def _filled(model: nn.Module, arrays: Arrays, metadata: Mapping[str, Any], path: Path) -> nn.Module:
    """Return a new model with the arrays of a file, in evaluation mode."""
    if "keep" in metadata:
        raise ConfigError(
            "the file has no whole model: some arrays never left the sites",
            where=str(path),
            got=f"keep = {metadata['keep']!r}",
            hint="The sites evaluated it: see `site_evaluation` in history.jsonl. Each site has "
            "its own arrays in its folder `state`",
        )
    exchange = metadata.get("exchange", ALL)
    if exchange == ALL:
        load_arrays(model, arrays)
    else:
        names = exchanged_names(model, exchange)
        check_base(base_of(base_digests(model, names)), metadata["base"], str(path))
        load_arrays(model, arrays, names)
    return model.eval()


def evaluate_run(
    run_dir: Path, data: str, data_root: str, best: bool, recalibrate_on: str = ""
) -> dict[str, Any]:
    """Return loss and metrics of a run's model on a test set.

    For a classification these are accuracy, the recall of each class (None for a class without
    examples), balanced accuracy (the mean recall of the classes that have examples), and
    `class_figures`. A job of the user's own is evaluated with its own metrics on its test examples,
    or on its validation examples if it has no others.

    Parameters
    ----------
    run_dir
        A run directory, or a model file inside one.
    data, data_root
        Data set and its root folder; the run's own if empty. It may be a test set alone, and may
        lack some of the model's classes; see `load_test_set`.
    best
        Whether to use the run directory's best model (by validation), not the last one.
    recalibrate_on
        Data set whose training examples are used to recompute the BatchNorm statistics first;
        empty to use the model unchanged.

    Raises
    ------
    DataError
        If a data set does not match the model, or has no examples.
    ConfigError
        If the model has no BatchNorm statistics and ``recalibrate_on`` is empty.
    """
    file = model_file(run_dir, best)
    model, metadata = load_model(file)
    config = config_beside(file)
    if "job" in metadata:
        changes = {"dataset": data or config.dataset, "data_root": data_root or config.data_root}
        config = _config_of_job(file, metadata).model_copy(update=changes)
        return _evaluate_job(load_run_task(config), model, file.name, recalibrate_on)
    if metadata.get(STATISTICS_KEY) == INITIAL and not recalibrate_on:
        raise ConfigError(
            "the model has no BatchNorm statistics: they never left the sites",
            where=str(file),
            hint="Compute them on the training examples of a site's data set: --recalibrate DATA",
        )
    root = data_root or config.data_root
    form, class_names = InputForm.of(metadata), metadata["class-names"]
    reading = form.reading(_reading(config))
    dataset = load_test_set(data or config.dataset, root, reading, form, class_names)
    _check_kind(dataset, metadata)
    dataset = dataset.limited(0, config.max_test_examples)
    if len(dataset.test) == 0:
        raise _empty(dataset, "test", "--data")
    device = pick_device(config.device)
    dtype = pick_autocast_dtype(config.precision, device)
    pipeline = InputPipeline(
        tuple(metadata["mean"]), tuple(metadata["std"]), channels_last=config.channels_last
    )
    splits = {"test": Tensors.of(dataset.test)}
    with repeatable(config.threads_per_site, device), torch.no_grad():
        if recalibrate_on:
            check_policy(model, metadata["model"], "recalibrate")
            own = load_dataset(recalibrate_on, root, reading)
            _check_kind(own, metadata)
            if len(own.train) == 0:
                raise _empty(own, "training", "--recalibrate")
            splits |= {"train": Tensors.of(own.train)}
        settings = TrainSettings(batch_size=config.batch_size)
        job = ClassificationJob(lambda: model, splits, settings, pipeline)
        if recalibrate_on:
            recalibrate(model, job, device, dtype, config.seed, own.name)
        result = evaluate(model, job, "test", device, dtype)
        inputs = splits["test"].inputs
        probabilities = class_probabilities(model, inputs, pipeline, device, dtype).numpy()
    return {
        "model": file.name,
        "dataset": dataset.name,
        "num-examples": result.num_examples,
        **numbers(result.metrics),
        **{
            name: finite(dict(zip(dataset.class_names, value, strict=True)))
            for name, value in result.metrics.items()
            if isinstance(value, list)
        },
        **class_figures(probabilities, dataset.test.labels, class_names),
        "loss": result.loss,
    }


def _config_of_job(file: Path, metadata: Mapping[str, Any]) -> RunConfig:
    """Return the config of a run with a job of the user's own."""
    about = {"job": metadata["job"], "seed": metadata["seed"]}
    return config_beside(file).model_copy(update=about)


def _evaluate_job(
    task: RunTask, model: nn.Module, name: str, recalibrate_on: str
) -> dict[str, Any]:
    """Return the metrics of a job's model on the examples that its job has here."""
    if recalibrate_on:
        raise ConfigError(
            "the statistics of a job of one's own cannot be recomputed here",
            where="--recalibrate",
            hint="Set batch-norm = 'recalibrate' in the run",
        )
    config, job = task.config, task.coordinator_job(0)
    splits = [split for split in ("test", "validation") if job.size(split) != 0]
    if not splits:
        raise DataError(
            "the job has neither test nor validation examples here",
            where=f"job {config.job}",
            hint="Choose data with --data: the job gets them as context.data",
        )
    with repeatable(config.threads_per_site, task.device):
        dtype = task.settings.autocast_dtype
        result = evaluate(model, job, splits[0], task.device, dtype)
    return {
        "model": name,
        "job": config.job,
        "split": splits[0],
        "num-examples": result.num_examples,
        **finite(dict(result.metrics)),
        "loss": result.loss,
    }


def _check_kind(dataset: DataSet, metadata: Mapping[str, Any]) -> None:
    """Refuse a data set whose classes, shape or vocabulary differ from the model's."""
    if list(dataset.class_names) != metadata["class-names"]:
        raise DataError(
            "the data set's classes differ from the model's",
            where=f"data set {dataset.name!r}",
            got=list(dataset.class_names),
            expected=str(metadata["class-names"]),
        )
    if list(dataset.input_shape) != metadata["input-shape"]:
        raise DataError(
            "the shape of the data set's examples differs from the model's",
            where=f"data set {dataset.name!r}",
            got=list(dataset.input_shape),
            expected=str(metadata["input-shape"]),
        )
    if dataset.vocabulary != metadata.get("vocabulary", ""):
        raise DataError(
            "the data set's vocabulary differs from the model's",
            where=f"data set {dataset.name!r}",
            got=dataset.vocabulary,
            expected=metadata.get("vocabulary", ""),
            hint="Set vocabulary in the run's config.toml to the vocabulary file of the run",
        )


def _empty(dataset: DataSet, split: str, option: str) -> DataError:
    return DataError(
        f"the data set has no {split} examples",
        where=f"data set {dataset.name!r}",
        hint=f"A contract contains no examples: choose a data set with {option}",
    )


def _reading(config: RunConfig) -> Reading:
    """Return how a run reads files: into the shape of its contract, if it has one."""
    if config.dataset.startswith(CONTRACT):
        return Contract.from_spec(config.dataset).reading(config.reading())
    return config.reading()


def config_beside(file: Path) -> RunConfig:
    """Return the config of the run in whose directory a file is; defaults if there is none."""
    path = file.parent / CONFIG
    return read_run_config(of_this_version(read_arm(path)[0]) if path.exists() else {})


def _find_users_modules(file: Path) -> None:
    """Let the user's own modules be found that the run found where it was started."""
    folder = read_summary(file.parent).get("folder", "")
    if folder and folder not in sys.path:
        sys.path.append(folder)
