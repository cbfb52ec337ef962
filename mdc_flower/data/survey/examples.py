"""The examples of a data set: counts, values, duplicates, and some of each class."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.readers.vocabulary import PADDING, UNKNOWN
from mdc_flower.data.remarks import remarks
from mdc_flower.data.survey.findings import Counts, Findings, Sample

PER_CLASS = 3
MOST_CLASSES = 50
LEAST_PIXELS = 96
NUMBERS = 12

Words = Callable[[NDArray[np.generic]], str]


def survey_examples(findings: Findings, data: DataSet, words: Words | None) -> None:
    """Survey the examples of a data set, which need not be valid.

    Parameters
    ----------
    findings
        Gets what is found.
    data
        The data set.
    words
        Returns the text of token numbers; None if the numbers have no known words.
    """
    splits = {"train": data.train, "test": data.test}
    shape = list(data.input_shape)
    findings.facts.append(("inputs", f"{data.train.inputs.dtype}{shape}"))
    sizes = ", ".join(f"{len(part)} {name}" for name, part in splits.items())
    findings.facts.append(("examples", sizes))
    counts = {
        name: np.bincount(part.labels[part.labels >= 0], minlength=data.num_classes)
        for name, part in splits.items()
    }
    rows = [
        [str(name), *(str(of[label]) for of in counts.values())]
        for label, name in enumerate(data.class_names)
    ]
    findings.tables.append(Counts("Examples by class", ["class", *splits], rows))
    for name, part in splits.items():
        _survey_values(findings, name, part)
    findings.notes.extend(note for note in remarks(data) if note not in findings.notes)
    _survey_duplicates(findings, data)
    _survey_owners(findings, data)
    findings.samples.extend(_samples(data, words))


def _survey_values(findings: Findings, split: str, part: Examples) -> None:
    """Survey values that are not finite, by column, and the range of the others."""
    inputs = part.inputs
    if inputs.dtype != np.float32 or not len(inputs):
        return
    bad = ~np.isfinite(inputs)
    if bad.any():
        rows = np.flatnonzero(bad.reshape(len(inputs), -1).any(axis=1)) + 1
        findings.problem(f"rows of {split} with values that are not finite", rows)
        if inputs.ndim == 2:
            columns = np.flatnonzero(bad.any(axis=0)) + 1
            findings.problem(f"columns of {split} with them", columns)
    finite = inputs[~bad]
    if len(finite):
        findings.facts.append((f"range of {split}", f"{finite.min():.4g} to {finite.max():.4g}"))


def _survey_duplicates(findings: Findings, data: DataSet) -> None:
    """Survey examples with the same inputs: in both splits, or with two labels."""
    train, test = _digests(data.train), _digests(data.test)
    labels: dict[bytes, set[int]] = {}
    for digest, label in zip(train, data.train.labels.tolist(), strict=False):
        labels.setdefault(digest, set()).add(label)
    shared = [row for row, digest in enumerate(test, 1) if digest in labels]
    findings.note("test rows with the inputs of a training example", shared)
    mixed = sum(len(of) > 1 for of in labels.values())
    if mixed:
        findings.notes.append(f"{mixed} inputs occur in train with more than one label")
    repeated = len(train) - len(set(train))
    if repeated:
        findings.notes.append(f"{repeated} training examples repeat another one")


def _survey_owners(findings: Findings, data: DataSet) -> None:
    if data.train.groups is None:
        return
    counts = Counter(data.train.groups.tolist())
    findings.facts.append(("owners in train", f"{len(counts)}, up to {max(counts.values())} each"))
    if data.test.groups is not None and len(counts) > 1:
        shared = sorted(set(counts) & set(data.test.groups.tolist()), key=str)
        findings.problem("owners are in both train and test", shared)


def _digests(part: Examples) -> list[bytes]:
    return [
        hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()
        for row in part.inputs
    ]


def _samples(data: DataSet, words: Words | None) -> Iterator[Sample]:
    for label, name in list(enumerate(data.class_names))[:MOST_CLASSES]:
        for row in np.flatnonzero(data.train.labels == label)[:PER_CLASS]:
            yield _sample(str(name), data.train.inputs[row], int(row) + 1, words)


def _sample(name: str, values: NDArray[np.generic], row: int, words: Words | None) -> Sample:
    """Return an example as the model gets it, apart from mean and std."""
    if values.dtype == np.int64 and words is not None:
        return Sample(name, words(values))
    if values.ndim == 3:
        shown = values if values.shape[0] == 3 else values[:1]
        if shown.dtype != np.uint8:
            low, high = np.nanmin(shown), np.nanmax(shown)
            shown = (255 * (shown - low) / max(high - low, 1e-9)).astype(np.uint8)
        if values.dtype != np.uint8:
            shown = shown[:, ::-1]  # low frequencies at the bottom
        pixels = shown.transpose(1, 2, 0)
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return Sample(name, f"row {row} of {name}", png_of(picture))
    flat = values.ravel()
    numbers = " ".join(f"{number:g}" for number in flat[:NUMBERS].tolist())
    return Sample(name, numbers + (" ..." if len(flat) > NUMBERS else ""))


def png_of(picture: Image.Image) -> bytes:
    """Return a picture as PNG; a small one is enlarged without smoothing."""
    factor = max(1, -(-LEAST_PIXELS // max(picture.size)))
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((256, 256))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def words_of(tokens: tuple[str, ...], first: int) -> Words:
    """Return the function that gives the text of token numbers; ``first`` is the first token's."""

    def text(numbers: NDArray[np.generic]) -> str:
        known = {PADDING: "", UNKNOWN: "[unknown]"}
        found = (known.get(n) if n in known else tokens[n - first] for n in numbers.tolist())
        return " ".join(word for word in found if word)

    return text
