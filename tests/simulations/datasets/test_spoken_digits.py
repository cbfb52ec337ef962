"""The recipe that lists the spoken digits."""

import csv
from pathlib import Path

import pytest

from simulations.datasets.spoken_digits import write_manifest
from strategies.common.errors import DataError


def test_digit_speaker_and_split_are_read_off_the_names(tmp_path: Path) -> None:
    for name in ("7_jackson_4.wav", "7_jackson_5.wav", "0_theo_12.wav", "readme.md"):
        (tmp_path / name).touch()
    manifest = tmp_path / "list.csv"
    assert write_manifest(tmp_path, manifest) == 3
    with manifest.open(newline="") as lines:
        assert list(csv.reader(lines)) == [
            ["path", "label", "split", "speaker"],
            [str(tmp_path / "0_theo_12.wav"), "0", "train", "theo"],
            [str(tmp_path / "7_jackson_4.wav"), "7", "test", "jackson"],
            [str(tmp_path / "7_jackson_5.wav"), "7", "train", "jackson"],
        ]


def test_another_name_is_refused_and_so_is_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder has no WAV files"):
        write_manifest(tmp_path, tmp_path / "list.csv")
    odd = tmp_path / "ten_jackson_4.wav"
    odd.touch()
    with pytest.raises(DataError, match="does not match the data set's pattern") as caught:
        write_manifest(tmp_path, tmp_path / "list.csv")
    assert caught.value.where == str(odd)
