"""All that is wrong with data at once: files, tables, arrays of a user's function."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdc_flower.data.readers.options import AudioReading, Reading, TextReading
from mdc_flower.data.survey import survey
from mdc_flower.reports.data_page import data_page
from tests.mdc_flower.commands import mdc
from tests.mdc_flower.data.survey.wrong_folder import FOUND, write_wrong_folder


def test_everything_wrong_with_a_folder_is_found_at_once(tmp_path: Path) -> None:
    findings = survey(write_wrong_folder(tmp_path / "data"))
    said = "\n".join(findings.lines())
    assert [one for one in FOUND if one not in said and one != "linked"] == []
    by_class = {row[0]: list(row[1:]) for row in findings.tables[-1].rows}
    # 6, and gray, clear; 6, and linked, wide, phone twice, two pages, as-cat, twice.
    assert by_class["cat"] == ["8", "3"]
    assert by_class["dog"] == ["14", "2"]
    assert {one.of for one in findings.samples} == {"cat", "cat ", "dog"}
    assert all(Image.open(io.BytesIO(one.png)).format == "PNG" for one in findings.samples)


def test_a_good_folder_has_no_problem_and_shows_three_of_each_class(tmp_path: Path) -> None:
    value = 0
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(5):
                value += 9
                file = tmp_path / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (value, 0, 0)).save(file)
    findings = survey(f"image-folder:{tmp_path}")
    assert (findings.problems, findings.notes) == ([], [])
    assert [one.of for one in findings.samples] == ["cat"] * 3 + ["dog"] * 3
    first = np.asarray(Image.open(io.BytesIO(findings.samples[0].png)))
    assert first.shape == (96, 96, 3)
    assert (first == [9, 0, 0]).all()


def test_under_a_contract_a_folder_may_lack_a_class(tmp_path: Path) -> None:
    spec = write_wrong_folder(tmp_path / "data")
    said = survey(spec, reading=Reading(classes=("dog", "cat", "ape"))).lines()
    assert "PROBLEM  folders are none of the agreed classes (3): bird, cat , nothing" in said
    assert "note     classes have no file to train on (1): ape" in said


def test_recordings(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
    pytest.importorskip("torchaudio", reason="needs the extra 'audio'")
    chance = np.random.default_rng(2)
    for split in ("train", "test"):
        for name in ("high", "low"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                samples = chance.normal(0, 0.1, 8000 * (number + 1))
                soundfile.write(tmp_path / split / name / f"{number}.wav", samples, 8000)
    (tmp_path / "train" / "low" / "bad.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "train" / "low" / "silent.wav", np.zeros(4000), 16_000)
    spec = f"audio-folder:{tmp_path}"
    said = "\n".join(survey(spec, reading=Reading(audio=AudioReading(8000, 16, 1.0))).lines())
    assert "recordings cannot be decoded (1): train/low/bad.wav" in said
    assert "recordings are silent throughout (1): train/low/silent.wav" in said
    assert "4 of 9 recordings are cut to 1 s (median 1 s); audio-seconds sets the length" in said
    assert "8000 Hz 8, 16000 Hz 1" in said


def test_texts_with_words_of_the_vocabulary(tmp_path: Path) -> None:
    rows = [
        "text,label",
        *(f"good film number {n} of all,pos" for n in range(3)),
        "bad,neg",
        ",neg",
    ]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "test.csv").write_text("text,label\ngood,pos\nbad,neg\n")
    reading = Reading(text=TextReading(length=4, min_count=2))
    findings = survey(f"text-folder:{tmp_path}", reading=reading)
    assert findings.problems == []
    said = "\n".join(findings.lines())
    assert "texts of train.csv are empty, in rows (1): 5" in said
    assert "3 of 5 texts fill all 4 tokens" in said
    assert "text-length sets how many" in said
    texts = [(one.of, one.text) for one in findings.samples]
    assert ("pos", "good film number [unknown]") in texts
    assert ("neg", "[unknown]") in texts


LAB = """
import numpy as np
from mdc_flower.data import DataSet, Examples

def patients():
    inputs = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    inputs[3, 1] = inputs[7, 1] = inputs[9, 2] = np.nan
    inputs[:, 3] = 5
    groups = np.arange(40) % 10
    train = Examples(inputs[:30], np.arange(30) % 2, groups[:30])
    test = Examples(inputs[25:], np.arange(15) % 2, groups[25:])
    return DataSet("patients", train, test, ["ill", "well"])

def broken():
    raise KeyError("age")
"""


def test_arrays_of_a_users_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "survey_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    said = "\n".join(survey("survey_lab:patients").lines())
    assert "rows of train with values that are not finite (3): 4, 8, 10" in said
    assert "columns of train with them (2): 2, 3" in said
    assert "it cannot be used: data set 'patients', train, row 4, column 2" in said
    assert "1 columns have the same value in all training rows: 4" in said
    assert "test rows with the inputs of a training example (5): 1, 2, 3, 4, 5" in said
    assert "owners are in both train and test (10): 0" in said
    assert "it cannot be used: KeyError: 'age'" in "\n".join(survey("survey_lab:broken").lines())


def test_the_command_writes_the_page_and_says_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    spec = write_wrong_folder(tmp_path / "data")
    done = mdc("data", "check", spec, "--output", str(page))
    assert done.exit_code == 2
    assert "PROBLEM  links lead nowhere (1): train/dog/dangling.png" in done.output
    assert '<img src="data:image/png;base64,' in page.read_text()
    good = mdc("data", "check", "digits", "--output", str(page))
    assert good.exit_code == 0, good.output
    assert "0 143 / 35" in good.output


def test_names_in_the_page_are_text(tmp_path: Path) -> None:
    (tmp_path / "train" / "<b>cat").mkdir(parents=True)
    findings = survey(f"image-folder:{tmp_path}")
    assert "<b>cat" not in data_page("<i>scans", findings)
    assert "&lt;b&gt;cat" in data_page("<i>scans", findings)
