"""A trained model that is used: it reads raw inputs as its run did, and names the classes."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mdc_flower.data.input_form import InputForm
from mdc_flower.data.raw_inputs import RawInputs, read_inputs
from mdc_flower.jobs.classification import class_probabilities
from mdc_flower.jobs.model_files import config_beside, load_model, model_file
from mdc_flower.training.batch_norm import INITIAL, STATISTICS_KEY
from mdc_flower.training.batches import InputPipeline
from mdc_flower.training.numerics import pick_autocast_dtype, pick_device, repeatable
from strategies.common.errors import ConfigError


@dataclass(frozen=True)
class Predictions:
    """What a model says of each input.

    Attributes
    ----------
    names : sequence of str
        The file of each input, or the number of its row, from 1.
    class_names : sequence of str
        The classes, in the order of the columns.
    probabilities : ndarray of float64, shape (inputs, classes)
        The model's softmax outputs; each row sums to 1.
    left_out : Mapping[str, int]
        How many files of a folder were not read, by suffix.
    """

    names: Sequence[str]
    class_names: Sequence[str]
    probabilities: NDArray[np.float64]
    left_out: Mapping[str, int]

    @property
    def labels(self) -> list[str]:
        """Return the most probable class of each input."""
        return [self.class_names[row] for row in self.probabilities.argmax(1)]

    def to_csv(self) -> str:
        """Return a table with a line for each input: its name, class and probabilities."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["input", "label", *(f"p({name})" for name in self.class_names)])
        for name, label, row in zip(self.names, self.labels, self.probabilities, strict=True):
            table.writerow([name, label, *(f"{value:.6g}" for value in row)])
        return text.getvalue()


@dataclass(frozen=True)
class TrainedModel:
    """A classification model of a run, with all that it needs to read raw inputs.

    Attributes
    ----------
    module : nn.Module
        The network, in evaluation mode. Its inputs are what ``pipeline`` makes of raw ones.
    about : Mapping
        The metadata of its file.
    pipeline : InputPipeline
        Scales and normalizes inputs as in the run.
    device, autocast_dtype
        Where, and in which number format, the model computes.
    """

    module: nn.Module
    about: Mapping[str, Any]
    pipeline: InputPipeline
    device: torch.device
    autocast_dtype: torch.dtype | None = None

    @property
    def class_names(self) -> list[str]:
        """Return the names of the classes."""
        return list(self.about["class-names"])

    @property
    def form(self) -> InputForm:
        """Return the form of the raw inputs."""
        return InputForm.of(self.about)

    def predict(self, inputs: object, column: str = "text") -> Predictions:
        """Return the probability of each class for each input.

        Parameters
        ----------
        inputs
            Raw inputs, such as a folder of images, a table of texts, a list of texts, or an array
            with the values of the run's data; see `read_inputs`.
        column
            The column of texts in a table.

        Raises
        ------
        DataError
            If the inputs cannot be read, or are not of the form of the run's.
        """
        raw = read_inputs(inputs, self.form, column)
        with repeatable(torch.get_num_threads(), self.device):
            found = np.concatenate([*self._probabilities(raw)])
        return Predictions(raw.names, self.class_names, found, raw.left_out)

    def _probabilities(self, raw: RawInputs) -> Iterator[NDArray[np.float64]]:
        for batch in raw.batches:
            tensor = torch.from_numpy(np.require(batch, requirements=["C", "W"]))
            yield class_probabilities(
                self.module, tensor, self.pipeline, self.device, self.autocast_dtype
            ).numpy()


def trained_model(path: Path | str, best: bool = False) -> TrainedModel:
    """Return the model of a run, ready to use.

    Parameters
    ----------
    path
        A run directory, or a model file.
    best
        Whether to use the run directory's best model (by validation), not the last one.

    Raises
    ------
    ConfigError
        If it is no classification, or has no BatchNorm statistics.
    RunError, ModelError
        See `load_model`.
    """
    file = model_file(Path(path).expanduser().absolute(), best)
    module, about = load_model(file)
    if "job" in about:
        raise ConfigError(
            "only a classification names classes; the inputs and outputs of a job of one's own are "
            "its own",
            where=str(file),
            got=f"job = {about['job']!r}",
            hint="`mdc_flower.jobs.model_files.load_model` returns its module",
        )
    if about.get(STATISTICS_KEY) == INITIAL:
        raise ConfigError(
            "the model has no BatchNorm statistics: they never left the sites",
            where=str(file),
            hint="Train with batch-norm = 'average' or 'recalibrate' for a model to use elsewhere",
        )
    config = config_beside(file)
    pipeline = InputPipeline(
        tuple(about["mean"]), tuple(about["std"]), channels_last=config.channels_last
    )
    device = pick_device(config.device)
    return TrainedModel(
        module, about, pipeline, device, pick_autocast_dtype(config.precision, device)
    )


def predict(model: Path | str, inputs: object, column: str = "text") -> Predictions:
    """Return what a run's model says of raw inputs: `trained_model` and `TrainedModel.predict`."""
    return trained_model(model).predict(inputs, column)
