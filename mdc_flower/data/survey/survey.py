"""`survey`: all that can be said about a data set, whether or not it can be read."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from mdc_flower.data.readers.audio import SUFFIXES as AUDIO_SUFFIXES
from mdc_flower.data.readers.images import decode_image
from mdc_flower.data.readers.options import Reading
from mdc_flower.data.readers.tables import SUFFIXES as TABLE_SUFFIXES
from mdc_flower.data.readers.tables import read_table
from mdc_flower.data.readers.text import read_vocabulary
from mdc_flower.data.readers.vocabulary import NUM_SPECIAL, Vocabulary
from mdc_flower.data.registry import (
    PLAIN,
    TEXT_READERS,
    data_folder,
    load_unchecked,
    training_texts,
)
from mdc_flower.data.survey.examples import PER_CLASS, Words, png_of, survey_examples, words_of
from mdc_flower.data.survey.findings import Findings, Sample
from mdc_flower.data.survey.folders import Found, survey_folders
from mdc_flower.data.survey.kinds import look_at_images, look_at_recordings
from strategies.common.errors import MdcError


def survey(spec: str, data_root: str = "", reading: Reading = PLAIN) -> Findings:
    """Return all that is wrong with a data set, its counts, and some examples of each class.

    Parameters
    ----------
    spec, data_root, reading
        As for `load_dataset`.
    """
    findings = Findings()
    kind, root = spec.partition(":")[0], Path(data_folder(spec, data_root) or "/")
    found: list[Found] = []
    if kind == "image-folder":
        look = partial(look_at_images, image_size=reading.image_size)
        suffixes = Image.registered_extensions()
        found = survey_folders(findings, root, suffixes, reading.classes, look)
    elif kind == "audio-folder":
        hear = partial(look_at_recordings, reading=reading.audio)
        found = survey_folders(findings, root, AUDIO_SUFFIXES, reading.classes, hear)
    elif kind == "text-folder":
        _survey_tables(findings, root, reading)
    try:
        data = load_unchecked(spec, data_root, reading)
        words = _words(spec, data_root, reading) if data.vocabulary else None
        survey_examples(findings, data, words)
        data.checked(needs_test=not reading.classes)
    except MdcError as error:
        findings.problems.append(f"it cannot be used: {error}")
    except Exception as error:  # a user's function may raise anything
        findings.problems.append(f"it cannot be used: {type(error).__name__}: {error}")
    if not findings.samples and kind == "image-folder":
        findings.samples.extend(_stored(found))
        findings.stored = True
    return findings


def _words(spec: str, data_root: str, reading: Reading) -> Words | None:
    """Return the function that gives the words of token numbers, if they are known."""
    if spec.partition(":")[0] not in TEXT_READERS:
        return None
    text = reading.text
    known = read_vocabulary(text) or Vocabulary.of(
        training_texts(spec, data_root, reading), text.vocabulary_size, text.min_count
    )
    return words_of(known.tokens, NUM_SPECIAL)


def _survey_tables(findings: Findings, root: Path, reading: Reading) -> None:
    """Survey the labels of all rows."""
    for split in ("train", "test"):
        for file in sorted(root.glob(f"{split}.*")):
            if file.suffix.lower() not in TABLE_SUFFIXES:
                findings.problems.append(f"{file.name}: the suffix is not that of a table")
                continue
            try:
                table = read_table(file, reading.columns)
            except MdcError as error:
                findings.problems.append(str(error))
                continue
            rows = list(enumerate(table.labels, 1))
            spaced = [f"{row} ({label!r})" for row, label in rows if label != label.strip()]
            findings.problem(
                f"labels of {file.name} begin or end with white space, in rows", spaced
            )
            empty = [row for row, text in enumerate(table.inputs, 1) if not text.strip()]
            findings.note(f"texts of {file.name} are empty, in rows", empty)
            if reading.classes:
                other = sorted(set(table.labels) - set(reading.classes))
                findings.problem(f"labels of {file.name} are none of the agreed classes", other)


def _stored(found: Sequence[Found]) -> list[Sample]:
    """Return the first images of each class as they are stored, where they cannot all be read."""
    samples = []
    shown: dict[str, int] = {}
    for one in found:
        if one.split == "train" and shown.setdefault(one.name, 0) < PER_CLASS:
            shown[one.name] += 1
            picture = decode_image(one.path, str(one.path))
            samples.append(Sample(one.name, f"{one.path.name}, as stored", png_of(picture)))
    return samples
