"""Recordings: what a spectrogram is, folders and lists of them, and what is refused by name."""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mdc_flower.data import load_dataset
from mdc_flower.data.readers import audio
from mdc_flower.data.readers.audio import (
    load_audio_folder,
    load_audio_manifest,
    log_mel,
    num_frames,
    seconds_of,
)
from mdc_flower.data.readers.options import AudioReading, Reading
from strategies.common.errors import ConfigError, DataError

soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
pytest.importorskip("torchaudio", reason="needs the extra 'audio'")

RATE = 8000
READING = AudioReading(RATE, 40, 0.5)
SILENCE = math.log(1e-6)
Samples = NDArray[np.float64] | NDArray[np.int16]


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: Samples, rate: int = RATE, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def spectrogram(path: Path, reading: AudioReading = READING) -> NDArray[np.float32]:
    return log_mel(path, str(path), reading)


def loudest_band(features: NDArray[np.generic]) -> int:
    return int(features[0].mean(axis=1).argmax())


# A spectrogram


@pytest.mark.parametrize(("hertz", "band"), [(200, 4), (1000, 18), (3000, 35)])
def test_a_tone_is_loudest_in_the_band_around_it(tmp_path: Path, hertz: int, band: int) -> None:
    # 0 to 4000 Hz is 0 to 2595 log10(1 + 4000/700) = 2146 mel. The centres of 40 bands lie at
    # multiples of 2146/41 = 52.3 mel, and 200, 1000 and 3000 Hz at 283, 1000 and 1876: 5.4, 19.1
    # and 35.8 of them; the first band is at 1.
    features = spectrogram(write(tmp_path / "tone.wav", tone(hertz)))
    assert loudest_band(features) == band


def test_silence_is_the_logarithm_of_the_floor_everywhere(tmp_path: Path) -> None:
    features = spectrogram(write(tmp_path / "silence.wav", np.zeros(100)))
    assert features.dtype == np.float32
    # 0.5 s are 50 hops of 10 ms, with a frame at each end.
    assert features.shape == (1, 40, 51)
    assert np.allclose(features, SILENCE)


def test_twice_the_amplitude_is_the_logarithm_of_four_more(tmp_path: Path) -> None:
    soft = spectrogram(write(tmp_path / "soft.wav", 0.5 * tone(1000), subtype="FLOAT"))
    loud = spectrogram(write(tmp_path / "loud.wav", tone(1000), subtype="FLOAT"))
    assert np.allclose((loud - soft)[0, 18, 10:40], math.log(4), atol=1e-3)


def test_what_is_short_is_followed_by_silence(tmp_path: Path) -> None:
    features = spectrogram(write(tmp_path / "short.wav", tone(1000, seconds=0.2)))[0]
    # Frame 20 is centred on 0.2 s; a window of 25 ms reaches over by half of it.
    assert features[18, :19].min() > 0
    assert np.allclose(features[:, 22:], SILENCE)


def test_of_what_is_long_the_beginning_is_taken(tmp_path: Path) -> None:
    beginning = tone(1000, seconds=0.5)
    whole = write(tmp_path / "whole.wav", np.concatenate([beginning, tone(3000, seconds=2)]))
    only = write(tmp_path / "only.wav", beginning)
    assert np.array_equal(spectrogram(whole), spectrogram(only))


@pytest.mark.parametrize("rate", [4000, 16_000, 22_050, 44_100])
def test_another_sample_rate_gives_the_same_bands(tmp_path: Path, rate: int) -> None:
    own = spectrogram(write(tmp_path / "own.wav", tone(1000)))
    other = spectrogram(write(tmp_path / "other.wav", tone(1000, rate=rate), rate))
    assert other.shape == own.shape
    assert np.allclose(own[0, 18, 5:45], other[0, 18, 5:45], atol=0.05)


def test_channels_are_averaged(tmp_path: Path) -> None:
    wave = tone(1000)
    cancelled = write(tmp_path / "cancelled.wav", np.stack([wave, -wave], axis=1), subtype="FLOAT")
    same = write(tmp_path / "same.wav", np.stack([wave, wave], axis=1), subtype="FLOAT")
    mono = write(tmp_path / "mono.wav", wave, subtype="FLOAT")
    assert np.allclose(spectrogram(cancelled), SILENCE)
    assert np.array_equal(spectrogram(same), spectrogram(mono))


def test_flac_says_the_same_as_wav_to_the_bit(tmp_path: Path) -> None:
    pcm = np.rint(tone(1000) * 32767).astype(np.int16)
    wav, flac = (write(tmp_path / f"a.{kind}", pcm, subtype="PCM_16") for kind in ("wav", "flac"))
    assert np.array_equal(spectrogram(wav), spectrogram(flac))


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.ogg", None)]
)
def test_every_format_is_read(tmp_path: Path, name: str, subtype: str | None) -> None:
    wav = spectrogram(write(tmp_path / "plain.wav", tone(1000), subtype="PCM_16"))
    other = spectrogram(write(tmp_path / "other" / name, tone(1000), subtype=subtype))
    assert np.allclose(other[0, 18, 10:40], wav[0, 18, 10:40], atol=0.1)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.05, 0.333, 1.0])
def test_frames_and_seconds_belong_together(tmp_path: Path, rate: int, seconds: float) -> None:
    reading = AudioReading(rate, 20, seconds)
    frames = spectrogram(write(tmp_path / "tone.wav", tone(300, rate=rate), rate), reading).shape[2]
    assert num_frames(reading) == frames
    least = AudioReading(rate, 20, seconds_of(frames, rate))
    assert num_frames(least) == frames
    assert least.seconds <= seconds + 1 / rate


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"", "cannot be decoded"), (b"no sound", "cannot be decoded"), (None, "is empty")],
)
def test_a_broken_recording_is_named(tmp_path: Path, content: bytes | None, named: str) -> None:
    path = write(tmp_path / "broken.wav", np.zeros(0))
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        spectrogram(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    path = write(tmp_path / "odd.wav", np.array([0.1, value]), subtype="FLOAT")
    with pytest.raises(DataError, match="not finite"):
        spectrogram(path)


def test_more_bands_than_frequencies_are_refused_by_key(tmp_path: Path) -> None:
    path = write(tmp_path / "tone.wav", tone(1000))
    with (
        pytest.warns(UserWarning, match="all zero"),
        pytest.raises(ConfigError, match="too many mel bands") as caught,
    ):
        spectrogram(path, AudioReading(RATE, 200, 0.5))
    assert (caught.value.where, caught.value.got) == ("audio-mels", 200)


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two classes, low and high tones, in another order than that of names."""
    root = tmp_path / "sounds"
    write(root / "train" / "low" / "1.wav", tone(200))
    write(root / "train" / "high" / "2.flac", tone(3000))
    write(root / "train" / "high" / "1.WAV", tone(1000))
    write(root / "test" / "low" / "1.wav", tone(198))
    write(root / "test" / "high" / "1.wav", tone(3000))
    return root


def bands(inputs: NDArray[np.generic]) -> list[int]:
    return [loudest_band(features) for features in inputs]


def test_classes_and_recordings_are_in_the_order_of_their_names(folder: Path) -> None:
    (folder / "train" / "low" / "notes.txt").write_text("a low voice")
    data = load_audio_folder(str(folder), READING).checked()
    assert data.class_names == ["high", "low"]
    assert bands(data.train.inputs) == [18, 35, 4]
    assert data.train.labels.tolist() == [0, 0, 1]
    assert bands(data.test.inputs) == [35, 4]
    assert data.test.labels.tolist() == [0, 1]
    assert data.input_shape == (1, 40, 51)
    assert (data.name, data.mean, data.std) == ("audio-folder", (-10.0,), (5.0,))
    assert data.train.groups is None


def test_a_folder_is_found_by_its_path_and_read_as_the_settings_say(folder: Path) -> None:
    reading = Reading(audio=AudioReading(16_000, 20, 0.25))
    assert load_dataset(f"audio-folder:{folder}", reading=reading).input_shape == (1, 20, 26)


@pytest.mark.parametrize("path", ["sounds", "~/sounds", ""])
def test_a_relative_path_is_refused(path: str) -> None:
    for load, kind in (
        (load_audio_folder, "audio-folder"),
        (load_audio_manifest, "audio-manifest"),
    ):
        with pytest.raises(DataError, match="not absolute") as caught:
            load(path, READING)
        assert (caught.value.where, caught.value.got) == (kind, path)


def test_a_class_without_recordings_is_named(folder: Path) -> None:
    (folder / "train" / "middle").mkdir()
    with pytest.raises(DataError, match="the class has no recordings to train on") as caught:
        load_audio_folder(str(folder), READING)
    assert caught.value.where == str(folder / "train" / "middle")


def refuse_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "torchaudio", None)


def test_recordings_are_decoded_once_and_mapped_from_then_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_audio_folder(str(folder), READING)
    refuse_decoding(monkeypatch)
    again = load_audio_folder(str(folder), READING)
    assert isinstance(again.train.inputs, np.memmap)
    assert np.array_equal(again.train.inputs, before.train.inputs)


@pytest.mark.parametrize(
    "changed", [AudioReading(RATE, 40, 0.6), AudioReading(RATE, 41, 0.5), AudioReading(9000)]
)
def test_each_reading_is_cached_by_itself(folder: Path, changed: AudioReading) -> None:
    one, other = (load_audio_folder(str(folder), r).input_shape for r in (READING, changed))
    assert one == (1, 40, 51)
    assert other == (1, changed.mels, num_frames(changed))


def test_a_recording_that_was_written_anew_is_decoded_anew(folder: Path) -> None:
    load_audio_folder(str(folder), READING)
    file = write(folder / "train" / "low" / "1.wav", tone(1000))
    later = file.stat().st_mtime_ns + 1_000_000_000
    os.utime(file, ns=(later, later))
    assert bands(load_audio_folder(str(folder), READING).train.inputs) == [18, 35, 18]


def test_without_the_extra_the_error_says_how_to_install_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_decoding(monkeypatch)
    with pytest.raises(ConfigError, match="an optional library is not installed") as caught:
        load_audio_folder(str(folder), READING)
    assert "pip install 'mdc-flower[audio]'" in caught.value.hint


# Lists

HEAD = "path,label,split,speaker"
LINES = (
    "a.wav,low,train,eva",
    "sub/b.wav,high,train,adam",
    "c.wav,high,test,eva",
    "d.wav,low,test,adam",
)


@pytest.fixture
def list_folder(tmp_path: Path) -> Path:
    """Return a folder with recordings, for a list of them."""
    root = tmp_path / "lists"
    write(root / "a.wav", tone(200))
    write(root / "sub" / "b.wav", tone(3000))
    write(root / "c.wav", tone(1000))
    write(root / "d.wav", tone(198))
    return root


def listed(folder: Path, lines: Sequence[str] = LINES, head: str = HEAD) -> str:
    path = folder / "list.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return str(path)


def test_a_list_says_class_split_and_speaker_of_each_recording(list_folder: Path) -> None:
    data = load_audio_manifest(listed(list_folder), READING).checked()
    assert data.class_names == ["high", "low"]
    assert bands(data.train.inputs) == [4, 35]
    assert data.train.labels.tolist() == [1, 0]
    assert bands(data.test.inputs) == [18, 4]
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.groups is not None
    assert data.test.groups is not None
    assert data.train.groups.tolist() == ["eva", "adam"]
    assert data.test.groups.tolist() == ["eva", "adam"]
    assert data.name == "audio-manifest"


def test_a_list_is_found_by_its_path_with_absolute_recordings_and_more_columns(
    list_folder: Path, tmp_path: Path
) -> None:
    lines = [f"{i},{list_folder / line}" for i, line in enumerate(LINES)]
    path = listed(tmp_path, lines, head=f"number,{HEAD}")
    data = load_dataset(f"audio-manifest:{path}", reading=Reading(audio=READING))
    assert bands(data.train.inputs) == [4, 35]


def test_without_speakers_there_are_no_groups(list_folder: Path) -> None:
    lines = [line.rpartition(",")[0] for line in LINES]
    data = load_audio_manifest(listed(list_folder, lines, head="path,label,split"), READING)
    assert data.train.groups is None


def test_a_recording_that_moves_to_the_other_split_is_noticed(list_folder: Path) -> None:
    load_audio_manifest(listed(list_folder), READING)
    moved = [*LINES[:2], "c.wav,high,train,eva", LINES[3]]
    data = load_audio_manifest(listed(list_folder, moved), READING)
    assert (bands(data.train.inputs), bands(data.test.inputs)) == ([4, 35, 18], [4])


@pytest.mark.parametrize(
    ("head", "lines", "where", "named"),
    [
        (HEAD, (), "list.csv", "the list is empty"),
        ("path,label", ("a.wav,low",), "list.csv", "a column is missing"),
        (HEAD, (LINES[0], "a.wav,low,dev,eva"), "list.csv, line 3", "unknown split"),
        (HEAD, ("a.wav,low,train",), "list.csv, line 2", "the number of values differs"),
        (HEAD, ("a.wav,low,train,eva,1",), "list.csv, line 2", "the number of values differs"),
        (HEAD, (",low,train,eva",), "list.csv, line 2", "the line has no path"),
        (HEAD, ("a.wav,,train,eva",), "list.csv, line 2", "the line has no label"),
        (HEAD, ("a.wav,low,train,",), "list.csv, line 2", "the line has no speaker"),
        (HEAD, (LINES[0], LINES[3]), "list.csv", "there are fewer than two classes"),
        (HEAD, LINES[:2], "list.csv", "there are no test recordings"),
        (HEAD, (*LINES, "c.wav,odd,test,eva"), "list.csv", "a class without training recordings"),
        (HEAD, (*LINES, "e.wav,low,test,eva"), "e.wav", "a recording in the list does not exist"),
    ],
)
def test_a_list_that_is_not_as_it_should_be_is_refused_by_line(
    list_folder: Path, head: str, lines: Sequence[str], where: str, named: str
) -> None:
    with pytest.raises(DataError, match=named) as caught:
        load_audio_manifest(listed(list_folder, lines, head), READING)
    assert caught.value.where == str(list_folder / where)


def test_a_list_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the list cannot be read") as caught:
        load_audio_manifest(str(tmp_path / "list.csv"), READING)
    assert caught.value.where == str(tmp_path / "list.csv")


def test_the_suffixes_are_of_formats_that_the_library_reads() -> None:
    formats = {f".{name.lower()}" for name in soundfile.available_formats()}
    assert formats >= audio.SUFFIXES
