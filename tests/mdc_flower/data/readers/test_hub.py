"""Data sets of the Hugging Face Hub, from folders on disk; the Hub itself is not reached here."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mdc_flower.data import DataSet, load_dataset
from mdc_flower.data.readers.audio import log_mel
from mdc_flower.data.readers.options import AudioReading, Columns, HubReading, Reading, TextReading
from mdc_flower.data.readers.vocabulary import Vocabulary
from mdc_flower.data.registry import training_texts
from strategies.common.errors import DataError

TEXT = Reading(text=TextReading(length=3, min_count=1))
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the library prepares with the test, and forbid it the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def saved(folder: Path, features: datasets.Features | None = None, **splits: Any) -> str:
    """Save splits of columns as the library does, and return their name."""
    made = {
        name: datasets.Dataset.from_dict(columns, features=features)
        for name, columns in splits.items()
    }
    datasets.DatasetDict(made).save_to_disk(folder / "saved")
    return f"hf:{folder / 'saved'}"


def load(spec: str, reading: Reading = TEXT) -> DataSet:
    return load_dataset(spec, reading=reading)


WORDS = {"text": ["b a", "a", "c"], "label": ["yes", "no", "yes"]}


def test_a_folder_of_files_is_read_by_the_library(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nb a,1\na,0\n")
    (tmp_path / "test.csv").write_text("text,label\nb x,0\n")
    data = load(f"hf:{tmp_path}")
    assert data.train.inputs.tolist() == [[3, 2, 0], [2, 0, 0]]
    assert data.train.labels.tolist() == [1, 0]
    assert data.test.inputs.tolist() == [[3, 1, 0]]
    assert (data.class_names, data.num_tokens, data.name) == (["0", "1"], 4, "hf")
    assert data.vocabulary == Vocabulary(("a", "b")).sha256


def test_a_saved_data_set_is_read_by_its_columns(tmp_path: Path) -> None:
    columns = {"review": WORDS["text"], "verdict": WORDS["label"], "author": [3, 1, 3]}
    reading = Reading(
        text=TextReading(length=2, min_count=1),
        columns=Columns("review", "verdict", "author"),
        hub=HubReading(test_split="dev"),
    )
    data = load(saved(tmp_path, train=columns, dev=columns), reading)
    assert data.class_names == ["no", "yes"]
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.train.groups is not None
    assert data.train.groups.tolist() == ["3", "1", "3"]


def test_classes_that_have_names_keep_their_order(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a", "m"])}
    )
    columns = {"text": ["b", "a"], "label": [0, 1]}
    data = load(saved(tmp_path, features, train=columns, test=columns))
    assert data.class_names == ["z", "a", "m"]
    assert data.train.labels.tolist() == [0, 1]


def test_a_vocabularys_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("c\n")
    reading = Reading(text=TextReading(3, str(path)))
    data = load(saved(tmp_path, train=WORDS, test=WORDS), reading)
    assert data.train.inputs.tolist() == [[1, 1, 0], [1, 0, 0], [2, 0, 0]]


def test_a_vocabulary_is_of_the_training_texts(tmp_path: Path) -> None:
    columns = {"review": ["b a", "", "c"]}
    spec = saved(tmp_path, train=columns, dev=columns | {"review": ["x", "y", "z"]})
    assert training_texts(spec, reading=Reading(columns=Columns("review"))) == ["b a", "", "c"]
    with pytest.raises(DataError, match="the column is missing"):
        training_texts(spec)
    none = saved(tmp_path / "none", dev=columns)
    with pytest.raises(DataError, match="there is no such split") as caught:
        training_texts(none)
    assert caught.value.got == "train"


def test_images_are_no_texts(tmp_path: Path) -> None:
    columns = {"image": [Image.new("RGB", (6, 4), RED)]}
    spec = saved(tmp_path, datasets.Features({"image": datasets.Image()}), train=columns)
    with pytest.raises(DataError, match="the inputs are not texts") as caught:
        training_texts(spec, reading=Reading(columns=Columns("image")))
    assert (caught.value.where, caught.value.got) == (f"{spec}, image", "image")


def test_images_become_rgb_of_one_size(tmp_path: Path) -> None:
    images = [Image.new("RGB", (6, 4), RED), Image.new("L", (5, 5), 90)]
    columns = {"image": images, "label": ["red", "grey"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    spec = saved(tmp_path, features, train=columns, test=columns)
    data = load(spec, Reading(image_size=3, columns=Columns("image")))
    assert data.train.inputs.dtype == np.uint8
    assert data.input_shape == (3, 3, 3)
    assert data.train.inputs[:, :, 1, 1].tolist() == [list(RED), [90] * 3]
    assert data.train.labels.tolist() == [1, 0]
    assert (data.mean[0], data.num_tokens, data.vocabulary) == (0.485, 0, "")
    with pytest.raises(DataError, match="images differ in size") as caught:
        load(spec, Reading(columns=Columns("image")))
    assert caught.value.where == f"{spec}, train, row 2"


def test_recordings_become_spectrograms(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
    pytest.importorskip("torchaudio", reason="needs the extra 'audio'")
    wave = np.sin(np.arange(4000) / 3)
    stored = io.BytesIO()
    soundfile.write(stored, wave, 8000, format="FLAC")
    columns = {"audio": [{"bytes": stored.getvalue(), "path": None}] * 2, "label": ["a", "b"]}
    # The library would decode them with torchcodec, which nobody needs here.
    split = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "saved")
    audio = AudioReading(8000, 20, 0.5)
    reading = Reading(audio=audio, columns=Columns("audio"))
    data = load(f"hf:{tmp_path / 'saved'}", reading)
    assert np.array_equal(data.test.inputs[1], log_mel(io.BytesIO(stored.getvalue()), "", audio))
    assert data.mean == (-10.0,)


def test_what_was_made_is_mapped_from_then_on_and_made_anew_for_other_data(
    tmp_path: Path,
) -> None:
    first = load(saved(tmp_path / "one", train=WORDS, test=WORDS))
    assert isinstance(first.train.inputs, np.memmap)
    load_dataset.cache_clear()
    again = load(f"hf:{tmp_path / 'one' / 'saved'}")
    assert np.array_equal(again.train.inputs, first.train.inputs)
    other = load(saved(tmp_path / "two", train=WORDS | {"text": ["c", "c", "c"]}, test=WORDS))
    assert other.train.inputs.tolist() == [[2, 0, 0]] * 3


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("hf:org/name", ("org/name", None, None)),
        ("hf:org/name@v1.2", ("org/name", None, "v1.2")),
        ("hf:name", ("name", "de", None)),
    ],
)
def test_the_hub_is_asked_for_name_subset_and_revision(
    monkeypatch: pytest.MonkeyPatch, spec: str, asked: tuple[str, str | None, str | None]
) -> None:
    calls = []

    def ask(path: str, name: str | None, revision: str | None) -> datasets.DatasetDict:
        calls.append((path, name, revision))
        split = datasets.Dataset.from_dict(WORDS)
        return datasets.DatasetDict(train=split, test=split)

    monkeypatch.setattr(datasets, "load_dataset", ask)
    data = load(spec, Reading(text=TEXT.text, hub=HubReading(asked[1] or "")))
    assert calls == [asked]
    assert data.name == spec.removeprefix("hf:")


# Refused


def test_without_the_internet_the_error_says_what_can_be_done() -> None:
    # The library's own refusal, before it asks anybody.
    with pytest.raises(DataError, match="the data set cannot be loaded: ConnectionError") as caught:
        load("hf:no-such-org/no-such-set")
    assert caught.value.where == "hf:no-such-org/no-such-set"
    assert "hf:/abs/path" in caught.value.hint


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data set cannot be loaded") as caught:
        load(f"hf:{tmp_path / 'absent'}")
    assert caught.value.where == f"hf:{tmp_path / 'absent'}"


def test_a_split_that_is_missing_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    spec = saved(tmp_path, train=WORDS, dev=WORDS)
    with pytest.raises(DataError, match="there is no such split") as caught:
        load(spec)
    assert (caught.value.got, caught.value.expected) == ("test", "one of: train, dev")


def test_a_column_that_is_missing_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    spec = saved(tmp_path, train=WORDS, test=WORDS)
    with pytest.raises(DataError, match="the column is missing") as caught:
        load(spec, Reading(columns=Columns("review")))
    assert (caught.value.got, caught.value.expected) == (["text", "label"], "'review'")


def test_inputs_of_another_kind_are_refused(tmp_path: Path) -> None:
    columns = {"text": [1, 2], "label": ["a", "b"]}
    with pytest.raises(DataError, match="an unsupported type"):
        load(saved(tmp_path, train=columns, test=columns))


@pytest.mark.parametrize("label", [-1, None])
def test_a_split_without_labels_is_refused_with_the_key(tmp_path: Path, label: int | None) -> None:
    columns = {"text": ["a", "b"], "label": [0, 1]}
    spec = saved(tmp_path, train=columns, test=columns | {"label": [0, label]})
    with pytest.raises(DataError, match="labels are missing") as caught:
        load(spec)
    assert "hf-test-split" in caught.value.hint


def test_a_missing_text_is_refused_by_row(tmp_path: Path) -> None:
    spec = saved(tmp_path, train=WORDS | {"text": ["a", None, "b"]}, test=WORDS)
    with pytest.raises(DataError, match="a text is missing") as caught:
        load(spec)
    assert caught.value.where == f"{spec}, text, row 2"
