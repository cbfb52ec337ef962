"""`DataSet`: the interface between the readers and all code that uses examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from strategies.common.errors import DataError

CHECKED_AT_ONCE = 4 * 1024**2
"""Numbers of values that are checked at once."""


@dataclass(frozen=True)
class Examples:
    """Inputs and labels, one row per example.

    Attributes
    ----------
    inputs : ndarray, shape (N, ...)
        uint8 images ``(N, C, H, W)``, which are scaled to [0, 1] and normalized when a batch
        is made; float32 arrays, which are normalized without scaling; or int64 tokens, which
        the model gets unchanged. May be memory-mapped.
    labels : ndarray of int64, shape (N,)
        Class of each example, from 0.
    groups : ndarray of int64 or str, shape (N,), optional
        Natural owner of each example (a speaker, a hospital), for ``partition = natural-id``.
    """

    inputs: NDArray[np.generic]
    labels: NDArray[np.int64]
    groups: NDArray[np.generic] | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return the examples of these rows, in this order."""
        groups = self.groups[rows] if self.groups is not None else None
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows], groups=groups)


@dataclass(frozen=True)
class Part:
    """A subset of examples by row numbers; the examples are not copied.

    Attributes
    ----------
    whole : Examples
        All examples; may be memory-mapped.
    rows : ndarray of int64, shape (N,)
        Row numbers, in the order of the part.
    """

    whole: Examples
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.rows)

    @property
    def inputs(self) -> NDArray[np.generic]:
        """Return a copy of the inputs; `batches.Tensors` reads them without a copy."""
        return self.whole.inputs[self.rows]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return a copy of the labels."""
        return self.whole.labels[self.rows]

    @property
    def groups(self) -> NDArray[np.generic] | None:
        """Return a copy of the groups."""
        return None if self.whole.groups is None else self.whole.groups[self.rows]


@dataclass(frozen=True)
class DataSet:
    """Training and test examples of one task.

    Attributes
    ----------
    name : str
        Name for people; not a path.
    train, test : Examples
        The standard split. The test examples are not used to choose anything.
    class_names : sequence of str
        Names of the classes; their number is the model's number of outputs.
    mean, std : sequence of float
        Per-channel statistics (axis 1) for normalizing the inputs; empty for no normalization.
        They are constants of the data set, because with statistics of its own each site would
        give the model different inputs.
    num_tokens : int
        For int64 inputs: tokens are 0 (padding) to ``num_tokens - 1``. 0 if the inputs are not
        tokens, or if the number is unknown, which the built-in text models do not accept.
    vocabulary : str
        SHA-256 of the vocabulary, in hex; empty for none. Where it is equal, a token stands for
        the same word.
    validation : Examples, optional
        Validation examples of its own; without them, some of ``train`` are held out.
    """

    name: str
    train: Examples
    test: Examples
    class_names: Sequence[str]
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    num_tokens: int = 0
    vocabulary: str = ""
    validation: Examples | None = None

    @property
    def splits(self) -> dict[str, Examples]:
        """Return the examples of each split that the data set has, by its name."""
        own = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **own, "test": self.test}

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one example, without the batch axis."""
        return tuple(self.train.inputs.shape[1:])

    def checked(self, needs_test: bool = True) -> Self:
        """Check that the data set is consistent, and return it.

        Parameters
        ----------
        needs_test
            Whether there must be test examples; a site needs none.

        Raises
        ------
        DataError
            Naming the wrong part, what was found and what was expected.
        """
        for split, examples in self.splits.items():
            where = f"data set {self.name!r}, {split}"
            _check_examples(where, examples, self.num_classes)
            _check_finite(where, examples.inputs)
            if len(examples) == 0 and (split == "train" or needs_test):
                raise DataError("there are no examples", where=where)
            if examples.inputs.shape[1:] != self.train.inputs.shape[1:]:
                raise DataError(
                    f"{split} inputs and training inputs differ in shape",
                    where=f"data set {self.name!r}",
                    got=examples.inputs.shape[1:],
                    expected=str(self.input_shape),
                )
        channels = self.input_shape[0] if self.input_shape else 0
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 1, channels):
            raise DataError(
                "mean and std must have one value per channel",
                where=f"data set {self.name!r}",
                got=(tuple(self.mean), tuple(self.std)),
                expected=f"{channels} values each, or none",
            )
        for number, std in enumerate(self.std, 1):
            if not std > 0:
                raise DataError(
                    "the standard deviation of a channel is not positive",
                    where=f"data set {self.name!r}, std, channel {number} of {len(self.std)}",
                    got=float(std),
                    hint="If all its values are the same, leave it out, or set its std to 1",
                )
        if self.num_tokens:
            for split, examples in self.splits.items():
                _check_tokens(f"data set {self.name!r}, {split}", examples, self.num_tokens)
        return self

    def limited(self, max_train: int, max_test: int) -> Self:
        """Return the data set limited to at most so many examples per split; 0 keeps all."""
        return replace(self, train=_limit(self.train, max_train), test=_limit(self.test, max_test))


def _check_examples(where: str, examples: Examples, num_classes: int) -> None:
    inputs, labels = examples.inputs, examples.labels
    if inputs.dtype not in (np.uint8, np.float32, np.int64):
        raise DataError(
            "the inputs have an unsupported type",
            where=where,
            got=str(inputs.dtype),
            expected="uint8, float32 or int64",
        )
    if labels.ndim != 1 or labels.dtype != np.int64 or len(labels) != len(inputs):
        raise DataError(
            "the labels do not match the inputs",
            where=where,
            got=f"{labels.dtype}{list(labels.shape)}",
            expected=f"int64[{len(inputs)}]",
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise DataError(
            "a label has no class name",
            where=where,
            got=int(labels.max() if labels.max() >= num_classes else labels.min()),
            expected=f"0 to {num_classes - 1}",
        )
    if examples.groups is not None and len(examples.groups) != len(labels):
        raise DataError(
            "the groups do not match the labels",
            where=where,
            got=len(examples.groups),
            expected=str(len(labels)),
        )


def _check_finite(where: str, inputs: NDArray[np.generic]) -> None:
    """Refuse values that are not finite, naming the first one; rows and columns count from 1."""
    if inputs.dtype != np.float32:
        return
    step = max(1, CHECKED_AT_ONCE // max(1, math.prod(inputs.shape[1:])))
    for start in range(0, len(inputs), step):  # never all of a mapped array in memory
        finite = np.isfinite(inputs[start : start + step])
        if finite.all():
            continue
        row, *column = (int(place[0]) for place in np.nonzero(~finite))
        place = ", ".join(str(index + 1) for index in column)
        raise DataError(
            "a value is not finite",
            where=f"{where}, row {start + row + 1}, column {place}",
            got=float(inputs[(start + row, *column)]),
            expected="numbers; an empty cell of a table is NaN",
            hint="Fill in the value, or leave the row out",
        )


def _check_tokens(where: str, examples: Examples, num_tokens: int) -> None:
    inputs = examples.inputs
    if inputs.dtype != np.int64:
        raise DataError(
            "only int64 inputs can be tokens", where=where, got=str(inputs.dtype), expected="int64"
        )
    lowest, highest = int(inputs.min(initial=0)), int(inputs.max(initial=0))
    if lowest < 0 or highest >= num_tokens:
        raise DataError(
            "a token is out of range",
            where=where,
            got=lowest if lowest < 0 else highest,
            expected=f"0 to {num_tokens - 1}",
        )


def _limit(examples: Examples, maximum: int) -> Examples:
    """Return at most ``maximum`` examples, every k-th of each class, to keep class shares."""
    if maximum == 0 or maximum >= len(examples):
        return examples
    by_class = np.argsort(examples.labels, kind="stable")
    picked = by_class[np.arange(maximum) * len(examples) // maximum]
    return examples.take(np.sort(picked))
