"""`Contract`: what the sites of a federation have agreed that an example is.

It stands in for a data set where there is none: a coordinator without data builds its model from
it. And it judges a site's data set before the site joins, so that a swapped label or another
image size is found there and not in an average that is slightly wrong.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from mdc_flower.common.config_files import read_toml
from mdc_flower.common.config_model import ConfigModel
from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.readers.audio import seconds_of
from mdc_flower.data.readers.options import AudioReading, Reading
from strategies.common.errors import ConfigError, DataError

CONTRACT = "contract:"
"""Beginning of a ``dataset`` that is a contract, as JSON, and holds no examples."""


class Contract(ConfigModel):
    """Kind, shape and classes of the examples; the same at every site.

    Attributes
    ----------
    name : str
        Name of the task for people; goes into the model file.
    type : str
        ``uint8`` (images, scaled to [0, 1]), ``float32`` or ``int64`` (tokens), see `Examples`.
    shape : tuple of int
        Shape of one example, such as ``(3, 32, 32)``: channels, height, width.
    classes : tuple of str
        Name of each class, in the order of the labels.
    sample_rate : int
        Of recordings, in Hz: ``shape`` is ``(1, mels, frames)`` then, and each site reads its
        recordings so. 0 for anything else.
    num_tokens : int
        Of int64 examples: tokens are 0 (padding) to ``num_tokens - 1``; 0 if that is left open.
    vocabulary : str
        SHA-256 of the vocabulary's file, in hex, which every site must have; empty for any.
    mean, std : tuple of float
        Per-channel statistics (axis 0 of the shape) that every site normalizes with, in
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
            raise ValueError("sample-rate is in Hz, and at least 1000")
        if self.sample_rate and not is_audio:
            raise ValueError("with a sample-rate, type is 'float32' and shape [1, mels, frames]")
        if (self.num_tokens or self.vocabulary) and self.type != "int64":
            raise ValueError("only examples of type 'int64' have num-tokens and a vocabulary")
        return self

    @property
    def image_size(self) -> int:
        """Return height and width in pixels of square images; 0 for anything else."""
        square = self.type == "uint8" and len(self.shape) == 3 and self.shape[1] == self.shape[2]
        return self.shape[1] if square else 0

    def reading(self, base: Reading) -> Reading:
        """Return how files are read into the contract's shape; ``base`` says what that leaves open.

        An image size of ``base`` goes before the contract's, under which it must then be resized.
        """
        read = replace(base, image_size=base.image_size or self.image_size)
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
            If it is no contract.
        """
        try:
            values = json.loads(spec.removeprefix(CONTRACT))
        except ValueError as error:
            raise ConfigError(f"not JSON: {error}", where="dataset, contract", got=spec) from None
        if not isinstance(values, dict):
            raise ConfigError("not a JSON object", where="dataset, contract", got=spec)
        return cls.read(values, "dataset, contract")

    def data_set(self) -> DataSet:
        """Return the data set of a coordinator that has no example."""
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
        """Return a site's data set if it keeps the contract, under the contract's statistics.

        Parameters
        ----------
        dataset
            The site's own data set.
        min_examples
            Training examples that the site has promised.
        max_examples
            Most training examples that the site may have; 0 for no limit.

        Raises
        ------
        DataError
            Naming the first point in which it does not. The message holds no value of an example.
        """
        where = f"data contract {self.name!r}"
        inputs = dataset.train.inputs
        for what, got, expected in (
            ("the inputs are of another type", str(inputs.dtype), self.type),
            ("the examples have another shape", list(inputs.shape[1:]), list(self.shape)),
        ):
            if got != expected:
                raise DataError(what, where=where, got=got, expected=str(expected))
        _check_classes(where, dataset.class_names, self.classes)
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
                "there are more training examples than were agreed on",
                where=where,
                got=len(dataset.train),
                expected=f"{max_examples} or fewer",
            )
        return replace(dataset, name=self.name, mean=self.mean, std=self.std)

    def _check_tokens(self, where: str, dataset: DataSet) -> None:
        if self.num_tokens and dataset.num_tokens != self.num_tokens:
            raise DataError(
                "the vocabulary has another size",
                where=where,
                got=dataset.num_tokens,
                expected=f"{self.num_tokens} tokens",
            )
        if self.vocabulary and dataset.vocabulary != self.vocabulary:
            raise DataError(
                "the vocabulary is another, so that tokens would stand for other words",
                where=where,
                got=dataset.vocabulary,
                expected=f"{self.vocabulary}, the SHA-256 of its file",
                hint="Ask the coordinator for the vocabulary's file",
            )


def read_contract(path: Path) -> Contract:
    """Return the table ``[contract]`` of a TOML file.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds no contract.
    """
    table = read_toml(path).get("contract")
    if not isinstance(table, dict):
        raise ConfigError("there is no table [contract]", where=str(path))
    return Contract.read(table, f"{path}, [contract]")


def _check_classes(where: str, got: Sequence[str], expected: Sequence[str]) -> None:
    if list(got) == list(expected):
        return
    if sorted(got) == sorted(expected):
        raise DataError(
            "the classes are in another order, so that labels would be swapped",
            where=where,
            got=list(got),
            expected=str(list(expected)),
        )
    unknown, missing = sorted(set(got) - set(expected)), sorted(set(expected) - set(got))
    raise DataError(
        "the classes are others",
        where=where,
        got=f"{len(got)} classes"
        + (f", unknown: {', '.join(unknown)}" if unknown else "")
        + (f", missing: {', '.join(missing)}" if missing else ""),
        expected=f"{len(expected)}: {', '.join(expected)}",
    )
