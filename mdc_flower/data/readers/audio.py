"""Recordings as log-mel spectrograms: ``audio-folder:/abs/path``, ``audio-manifest:/abs/x.csv``.

soundfile reads the files; torchaudio resamples them and computes the mel spectrogram. Both come
with the extra ``audio``, and are imported only to decode recordings that are not cached.
"""

import csv
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mdc_flower.common.extras import library
from mdc_flower.data.cache import cached_arrays
from mdc_flower.data.dataset import DataSet, Examples
from mdc_flower.data.readers.class_folders import (
    Files,
    absolute,
    class_folders,
    fingerprint,
    labels_of,
)
from mdc_flower.data.readers.options import AudioReading
from mdc_flower.data.readers.owners import owners_of
from mdc_flower.data.readers.same_files import refuse_same_files
from strategies.common.errors import ConfigError, DataError

SUFFIXES = frozenset({".wav", ".flac", ".ogg"})
"""Suffixes that are read from class folders; a manifest may name any file for soundfile."""

WINDOW_S, HOP_S = 0.025, 0.010
"""Length of a frame, and distance between two frames, in seconds."""

FLOOR = 1e-6
"""Added to the power of a mel band before the logarithm; silence becomes -13.8."""

LOG_MEL_MEAN, LOG_MEL_STD = (-10.0,), (5.0,)
"""Constants for all recordings. On every fifth of the 3,000 spoken digits, padded to 1 s, mean and
deviation are -10.1 and 4.9 at 8 kHz with 40 bands, -10.5 and 5.0 at 16 kHz with 64."""

FEATURES_VERSION = 2
"""Increase it with every change of the features, to invalidate the cache."""

SPLITS = ("train", "test", "validation")
NO_GROUPS = (None, None, None)


def load_audio_folder(
    path: str, reading: AudioReading, agreed: Sequence[str] = (), owners: str = ""
) -> DataSet:
    """Load the recordings of a folder as log-mel spectrograms, decoded once and cached.

    Parameters
    ----------
    path
        Absolute path, with folders ``train/`` and ``test/``, each with one folder per class.
    reading
        Sample rate, mel bands and length that all recordings get.
    agreed
        The agreed classes; see `Reading.classes`.
    owners
        Where the owners of the recordings are named; see `owners_of`.

    Raises
    ------
    ConfigError
        If soundfile or torchaudio is missing.
    DataError
        If a folder is missing or has no recordings, if the classes of train and test differ, or
        if a file is in both, cannot be decoded or has no owner. The error names the folder or file.
    """
    found = class_folders(path, "audio-folder", "recordings", SUFFIXES, agreed)
    files = (found.train, found.test, found.validation)
    groups = [owners_of(Path(path), split, owners) for split in files]
    return _data_set("audio-folder", found.class_names, files, reading, groups)


def load_audio_manifest(path: str, reading: AudioReading, agreed: Sequence[str] = ()) -> DataSet:
    """Load the recordings that a CSV file lists, decoded once and cached.

    Parameters
    ----------
    path
        Absolute path of a CSV file whose first line names the columns ``path``, ``label``,
        ``split`` and, optionally, ``speaker``. Paths are absolute, or relative to the file's
        folder; a split is one of `SPLITS`; speakers are the groups of the data set.
        Classes are the sorted labels of ``train``, unless they are agreed.
    reading
        Sample rate, mel bands and length that all recordings get.
    agreed
        The agreed classes; see `Reading.classes`.

    Raises
    ------
    ConfigError
        If soundfile or torchaudio is missing.
    DataError
        If the file or a column is missing, a line is not valid, or a recording is missing or
        cannot be decoded. The error names the line or the recording.
    """
    file = absolute(path, "audio-manifest")
    rows = _rows(file)
    classes = list(agreed) or sorted({row["label"] for row in rows if row["split"] == "train"})
    if len(classes) < 2:
        raise DataError("there are fewer than two classes", where=str(file), got=len(classes))
    splits = tuple([row for row in rows if row["split"] == split] for split in SPLITS)
    for row in rows if agreed else [*splits[1], *splits[2]]:
        if row["label"] not in classes:
            raise DataError(
                "a label is none of the agreed classes"
                if agreed
                else "a test recording has a class without training recordings",
                where=str(file),
                got=row["label"],
                expected="one of: " + ", ".join(classes),
            )
    if not splits[0]:
        raise DataError("there are no training recordings", where=str(file))
    if not splits[1] and not agreed:
        raise DataError("there are no test recordings", where=str(file))
    files = tuple(
        [(file.parent / row["path"], classes.index(row["label"])) for row in split]
        for split in splits
    )
    for recording, _ in (entry for split in files for entry in split):
        if not recording.is_file():
            raise DataError("a recording in the list does not exist", where=str(recording))
    groups: Sequence[NDArray[np.generic] | None] = NO_GROUPS
    if "speaker" in rows[0]:
        groups = tuple(np.array([row["speaker"] for row in split]) for split in splits)
    return _data_set("audio-manifest", classes, files, reading, groups)


def num_frames(reading: AudioReading) -> int:
    """Return the number of frames of a spectrogram: one per hop, from the first sample on."""
    return 1 + _num_samples(reading) // _hop(reading)


def seconds_of(frames: int, sample_rate: int) -> float:
    """Return the shortest length in seconds that gives ``frames`` frames."""
    reading = AudioReading(sample_rate=sample_rate)
    return (frames - 1) * _hop(reading) / sample_rate


def log_mel(source: Path | IO[bytes], name: str, reading: AudioReading) -> NDArray[np.float32]:
    """Return a recording's log-mel spectrogram, of shape ``(1, mels, frames)``.

    Channels are averaged. Longer recordings are cut at the end; shorter ones are padded with
    silence. The mel scale is HTK's, the window is Hann's, and the value is ``ln(power + 1e-6)``
    with full scale at 1.

    Parameters
    ----------
    source, name
        The recording, and its name for errors.
    reading
        Sample rate, mel bands and length.

    Raises
    ------
    ConfigError
        If soundfile or torchaudio is missing.
    DataError
        If it cannot be decoded, is empty, or contains values that are not finite.
    """
    import torch

    samples, rate = _samples(source, name, reading.seconds)
    wave = torch.from_numpy(samples)
    if rate != reading.sample_rate:
        wave = library("torchaudio", "audio", "dataset").functional.resample(
            wave, rate, reading.sample_rate
        )
    count = _num_samples(reading)
    wave = torch.nn.functional.pad(wave[:count], (0, max(0, count - len(wave))))
    mel = _mel_spectrogram(reading)(wave)
    features: NDArray[np.float32] = torch.log(mel + FLOOR).numpy()
    return features[None]


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, strict=True)
            rows = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the list cannot be read: {error}", where=str(file)) from None
    for column in ("path", "label", "split"):
        if column not in columns:
            raise DataError(
                "a column is missing from the list",
                where=str(file),
                got=columns,
                expected="path, label, split, and optionally speaker",
            )
    for number, row in rows:
        _check_row(f"{file}, line {number}", row, columns)
    if not rows:
        raise DataError("the list is empty", where=str(file))
    return [row for _, row in rows]


def _check_row(where: str, row: dict[str, Any], columns: Sequence[str]) -> None:
    if None in row or None in row.values():
        raise DataError("the number of values differs from that of the first line", where=where)
    if row["split"] not in SPLITS:
        raise DataError(
            "unknown split", where=where, got=row["split"], expected="one of: " + ", ".join(SPLITS)
        )
    for column in ("path", "label", "speaker"):
        if column in columns and not row[column]:
            raise DataError(f"the line has no {column}", where=where)


def _data_set(
    name: str,
    classes: Sequence[str],
    files: Sequence[Files],
    reading: AudioReading,
    groups: Sequence[NDArray[np.generic] | None] = NO_GROUPS,
) -> DataSet:
    # The key depends on the split too, because a recording may move to the other split.
    marked = [
        (file, number * len(classes) + label)
        for number, split in enumerate(files)
        for file, label in split
    ]
    arrays = cached_arrays(
        f"audio-{fingerprint(marked, reading, FEATURES_VERSION)}",
        lambda: _features(files, reading),
    )
    train, test, validation = (
        Examples(arrays[f"{split}_inputs"], labels_of(part), owners)
        for split, part, owners in zip(SPLITS, files, groups, strict=True)
    )
    return DataSet(
        name=name,
        train=train,
        test=test,
        validation=validation if len(validation) else None,
        class_names=classes,
        mean=LOG_MEL_MEAN,
        std=LOG_MEL_STD,
    )


def _features(files: Sequence[Files], reading: AudioReading) -> dict[str, NDArray[np.generic]]:
    """Return the spectrograms of each split."""
    refuse_same_files(*files)
    return {
        f"{split}_inputs": _spectrograms(part, reading)
        for split, part in zip(SPLITS, files, strict=True)
    }


def _spectrograms(files: Files, reading: AudioReading) -> NDArray[np.float32]:
    """Return the spectrograms of recordings, of which there may be none."""
    found = [log_mel(file, str(file), reading) for file, _ in files]
    shape = (1, reading.mels, num_frames(reading))
    return np.stack(found) if found else np.empty((0, *shape), np.float32)


def _samples(
    source: Path | IO[bytes], name: str, seconds: float
) -> tuple[NDArray[np.float32], int]:
    """Return the first seconds of a recording as one channel, and its sample rate."""
    soundfile = library("soundfile", "audio", "dataset")
    try:
        with soundfile.SoundFile(source) as file:
            rate = int(file.samplerate)
            samples = file.read(math.ceil(seconds * rate), dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:  # a raw file has no header
        raise DataError(f"the recording cannot be decoded: {error}", where=name) from None
    if len(samples) == 0:
        raise DataError("the recording is empty", where=name)
    if not np.isfinite(samples).all():
        raise DataError("the recording contains values that are not finite", where=name)
    return samples.mean(axis=1, dtype=np.float32), rate


def _num_samples(reading: AudioReading) -> int:
    return round(reading.seconds * reading.sample_rate)


def _hop(reading: AudioReading) -> int:
    return round(HOP_S * reading.sample_rate)


@lru_cache(maxsize=4)
def _mel_spectrogram(reading: AudioReading) -> Any:
    window = round(WINDOW_S * reading.sample_rate)
    num_bins = 2 ** math.ceil(math.log2(window))
    transform = library("torchaudio", "audio", "dataset").transforms.MelSpectrogram(
        reading.sample_rate,
        n_fft=num_bins,
        win_length=window,
        hop_length=_hop(reading),
        n_mels=reading.mels,
    )
    if not (transform.mel_scale.fb.sum(0) > 0).all():
        raise ConfigError(
            "there are too many mel bands for the sample rate",
            where="audio-mels",
            got=reading.mels,
            expected=f"fewer, or a higher audio-sample-rate than {reading.sample_rate}",
        )
    return transform
