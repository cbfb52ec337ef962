"""What may be wrong with a data set, though it can be used; a run and the checks say it."""

from collections.abc import Iterator

import numpy as np

from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.readers.vocabulary import PADDING, UNKNOWN

SAMPLED = 256
"""About how many examples tell the range of the inputs."""

FAR = 20.0
"""Normalized inputs beyond this are far from what models expect: a few units around 0."""

MANY_UNKNOWN = 0.1

SHOWN = 5


def remarks(dataset: DataSet) -> list[str]:
    """Return what may be wrong with a data set that passes all checks, a line each."""
    return [
        *_rare_classes(dataset),
        *_unfit_statistics(dataset),
        *_constant_columns(dataset),
        *_cut_texts(dataset),
    ]


def _rare_classes(dataset: DataSet) -> Iterator[str]:
    counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
    for number, text in ((0, "no training example"), (1, "only one training example")):
        if names := [str(dataset.class_names[int(c)]) for c in np.flatnonzero(counts == number)]:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"{', '.join(names[:SHOWN])}{more}: {text}"


def _unfit_statistics(dataset: DataSet) -> Iterator[str]:
    """Yield a line if the inputs are far from 0 once mean and std have normalized them."""
    inputs = _sample(dataset.train)
    if inputs.dtype != np.float32 or not len(dataset.mean):
        return
    shape = (1, -1, *(1 for _ in inputs.shape[2:]))
    mean, std = (np.asarray(of, np.float32).reshape(shape) for of in (dataset.mean, dataset.std))
    farthest = float(np.abs((inputs - mean) / std).max(initial=0.0))
    if farthest > FAR:
        yield (
            f"the inputs are from {inputs.min():.4g} to {inputs.max():.4g}, but mean is "
            f"{_numbers(dataset.mean)} and std {_numbers(dataset.std)}: normalized, they are up to "
            f"{farthest:.4g} from 0. Statistics of images are usually for inputs from 0 to 1"
        )


def _constant_columns(dataset: DataSet) -> Iterator[str]:
    inputs = dataset.train.inputs
    if inputs.dtype != np.float32 or inputs.ndim != 2 or len(inputs) < 2:
        return
    same = np.flatnonzero(inputs.min(axis=0) == inputs.max(axis=0))
    if len(same):
        shown = ", ".join(str(column + 1) for column in same[:SHOWN])
        more = ", ..." if len(same) > SHOWN else ""
        yield f"{len(same)} columns have the same value in all training rows: {shown}{more}"


def _cut_texts(dataset: DataSet) -> Iterator[str]:
    """Yield lines if texts may be cut, or if many of their tokens are unknown."""
    inputs = dataset.train.inputs
    if not (dataset.vocabulary and inputs.ndim == 2 and inputs.size):
        return
    used = inputs != PADDING
    full = int(used[:, -1].sum())
    if full:
        yield (
            f"{full} of {len(inputs)} texts fill all {inputs.shape[1]} tokens, so that longer ones "
            f"are cut (median {np.median(used.sum(axis=1)):.0f}); text-length sets how many"
        )
    unknown = float((inputs == UNKNOWN).sum() / max(1, used.sum()))
    if unknown > MANY_UNKNOWN:
        yield f"{unknown:.0%} of the tokens are not in the vocabulary"


def _sample(examples: Examples) -> np.ndarray:
    return examples.inputs[:: max(1, len(examples) // SAMPLED)]


def _numbers(values: object) -> str:
    return ", ".join(f"{value:.4g}" for value in np.ravel(np.asarray(values))[:SHOWN])
