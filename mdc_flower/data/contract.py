"""`Contract`: the form of an example on which the sites of a federation have agreed.

A coordinator without data builds its model from the contract. A site's data set is checked against
it before the site joins, so that a swapped label or a wrong image size is found there, and not in
an average that is slightly wrong.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from mdc_flower.common.config_files import read_toml
from mdc_flower.common.config_model import ConfigModel
from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.readers.audio import seconds_of
from mdc_flower.data.readers.options import AudioReading, Reading
from strategies.common.errors import ConfigError, DataError

CONTRACT = "contract:"
"""Prefix of a ``dataset`` value that is a contract, as JSON, without examples."""


class Contract(ConfigModel):
    """Type, shape and classes of the examples, which are the same at every site.

    Attributes
    ----------
    name : str
        Name of the task for people; stored in the model file.
    type : str
        ``uint8`` (images, scaled to [0, 1]), ``float32`` or ``int64`` (tokens); see `Examples`.
    shape : tuple of int
        Shape of one example, such as ``(3, 32, 32)``: channels, height, width.
    classes : tuple of str
        Names of the classes, in the order of the labels.
    sample_rate : int
        Sample rate of recordings, in Hz; 0 for other data. ``shape`` is then
        ``(1, mels, frames)``, and each site reads its recordings into this shape.
    num_tokens : int
        For int64 examples: tokens are 0 (padding) to ``num_tokens - 1``; 0 if not specified.
    vocabulary : str
        SHA-256, in hex, of the vocabulary file that every site must have; empty for any file.
    mean, std : tuple of float
        Per-channel statistics (axis 0 of the shape) with which every site normalizes, in
        units of inputs scaled to [0, 1] for ``uint8``; both empty for no normalization.
    """

    name: Annotated[str, Field(min_length=1)]
    type: Literal["uint8", "float32", "int64"]
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    sample_rate: Annotated[int, Field(ge=0)] = 0
    num_tokens: Annotated[int, Field(ge=0)] = 0
    vocabulary: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    mean: tuple[FiniteFloat, ...] = ()
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 1, self.shape[0]):
            raise ValueError(f"mean and std must have {self.shape[0]} values each, or none")
        is_audio = self.type == "float32" and len(self.shape) == 3 and self.shape[0] == 1
        if 0 < self.sample_rate < 1000:
            raise ValueError("sample-rate is in Hz, and must be at least 1000")
        if self.sample_rate and not is_audio:
            raise ValueError("sample-rate needs type 'float32' and shape [1, mels, frames]")
        if (self.num_tokens or self.vocabulary) and self.type != "int64":
            raise ValueError("num-tokens and vocabulary need type 'int64'")
        return self

    @property
    def image_size(self) -> int:
        """Return height and width in pixels of square images; 0 for other data."""
        square = self.type == "uint8" and len(self.shape) == 3 and self.shape[1] == self.shape[2]
        return self.shape[1] if square else 0

    def reading(self, base: Reading) -> Reading:
        """Return how files are read into the contract's shape; ``base`` gives the other settings.

        An image size in ``base`` takes precedence over the contract's.
        """
        read = replace(base, image_size=base.image_size or self.image_size, classes=self.classes)
        if self.sample_rate:
            _, mels, frames = self.shape
            seconds = seconds_of(frames, self.sample_rate)
            read = replace(read, audio=AudioReading(self.sample_rate, mels, seconds))
        if self.type == "int64" and len(self.shape) == 1:
            read = replace(read, text=replace(base.text, length=self.shape[0]))
        return read

    def to_spec(self) -> str:
        """Return the contract as a value of the key ``dataset``."""
        return CONTRACT + json.dumps(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Read what `to_spec` returned.

        Raises
        ------
        ConfigError
            If it is not a contract.
        """
        try:
            values = json.loads(spec.removeprefix(CONTRACT))
        except ValueError as error:
            raise ConfigError(f"not JSON: {error}", where="dataset, contract", got=spec) from None
        if not isinstance(values, dict):
            raise ConfigError("not a JSON object", where="dataset, contract", got=spec)
        return cls.read(values, "dataset, contract")

    def data_set(self) -> DataSet:
        """Return the data set of a coordinator without data: it has no examples."""
        none = Examples(np.empty((0, *self.shape), self.type), np.empty(0, np.int64))
        return DataSet(
            self.name,
            none,
            none,
            self.classes,
            self.mean,
            self.std,
            self.num_tokens,
            self.vocabulary,
        )

    def kept_by(self, dataset: DataSet, min_examples: int = 0, max_examples: int = 0) -> DataSet:
        """Check a site's data set, and return it with the contract's name, classes, mean and std.

        The names of the data set's classes decide which labels its examples get.

        Parameters
        ----------
        dataset
            The site's own data set.
        min_examples
            Least number of training examples that the site has promised.
        max_examples
            Greatest number of training examples that the site may have; 0 for no limit.

        Raises
        ------
        DataError
            If the data set violates the contract. The message never contains an example's values.
        """
        where = f"data contract {self.name!r}"
        inputs = dataset.train.inputs
        for what, got, expected in (
            ("the inputs have the wrong type", str(inputs.dtype), self.type),
            ("the examples have the wrong shape", list(inputs.shape[1:]), list(self.shape)),
        ):
            if got != expected:
                raise DataError(what, where=where, got=got, expected=str(expected))
        dataset = _relabelled(where, dataset, self.classes)
        self._check_tokens(where, dataset)
        if len(dataset.train) < min_examples:
            raise DataError(
                "there are fewer training examples than the site has promised",
                where=where,
                got=len(dataset.train),
                expected=f"{min_examples} or more",
            )
        if 0 < max_examples < len(dataset.train):
            raise DataError(
                "there are more training examples than the sites have agreed on",
                where=where,
                got=len(dataset.train),
                expected=f"{max_examples} or fewer",
            )
        return replace(dataset, name=self.name, mean=self.mean, std=self.std)

    def _check_tokens(self, where: str, dataset: DataSet) -> None:
        if self.num_tokens and dataset.num_tokens != self.num_tokens:
            raise DataError(
                "the vocabulary has the wrong size",
                where=where,
                got=dataset.num_tokens,
                expected=f"{self.num_tokens} tokens",
            )
        if self.vocabulary and dataset.vocabulary != self.vocabulary:
            raise DataError(
                "the vocabulary differs, so that tokens would stand for other words",
                where=where,
                got=dataset.vocabulary,
                expected=f"{self.vocabulary}, the SHA-256 of the file",
                hint="Ask the coordinator for the vocabulary file",
            )


def read_contract(path: Path) -> Contract:
    """Return the contract in the table ``[contract]`` of a TOML file.

    Raises
    ------
    ConfigError
        If the file cannot be read, or contains no contract.
    """
    table = read_toml(path).get("contract")
    if not isinstance(table, dict):
        raise ConfigError("there is no table [contract]", where=str(path))
    return Contract.read(table, f"{path}, [contract]")


def _relabelled(where: str, dataset: DataSet, classes: Sequence[str]) -> DataSet:
    """Return the data set with these classes; each of its own must be one of them."""
    own = list(dataset.class_names)
    if own == list(classes):
        return dataset
    if unknown := sorted(set(own) - set(classes)):
        raise DataError(
            "the data set has a class that is not in the contract",
            where=where,
            got=", ".join(unknown),
            expected="one of: " + ", ".join(classes),
        )
    labels = np.array([list(classes).index(name) for name in own], np.int64)
    splits: dict[str, Any] = {
        name: replace(split, labels=labels[split.labels]) for name, split in dataset.splits.items()
    }
    return replace(dataset, **splits, class_names=classes)
