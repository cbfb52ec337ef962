"""The agreed classes give the labels of all kinds of files; owners; files in both splits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdc_flower.data import load_dataset, site_data
from mdc_flower.data.readers.options import AudioReading, Columns, Reading, TextReading
from strategies.common.errors import DataError

CLINICAL = ("normal", "benign", "malignant")
READING = Reading(audio=AudioReading(8000, 8, 0.1), text=TextReading(length=2, min_count=1))
AGREED = replace(READING, classes=CLINICAL)


def image_folder(root: Path, counts: dict[str, list[int]]) -> str:
    """Write images; ``counts`` has the number of images of each class by split."""
    value = 0
    for split, numbers in counts.items():
        for name, number in zip(CLINICAL, numbers, strict=True):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                value += 1
                Image.new("RGB", (4, 4), (value, 0, 0)).save(root / split / name / f"{index}.png")
    return f"image-folder:{root}"


def audio_folder(root: Path, counts: dict[str, list[int]]) -> str:
    soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
    value = 0
    for split, numbers in counts.items():
        for name, number in zip(CLINICAL, numbers, strict=True):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                value += 1
                samples = np.full(800, value / 100)
                soundfile.write(root / split / name / f"{index}.wav", samples, 8000)
    return f"audio-folder:{root}"


def audio_manifest(root: Path, counts: dict[str, list[int]]) -> str:
    spec = audio_folder(root, counts)
    rows = [
        f"{file.relative_to(root)},{file.parent.name},{file.parents[1].name}"
        for file in sorted(root.rglob("*.wav"))
    ]
    (root / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return f"audio-manifest:{spec.partition(':')[2]}/list.csv"


def table(root: Path, counts: dict[str, list[int]]) -> list[Path]:
    root.mkdir()
    files = []
    for split, numbers in counts.items():
        rows = [
            f"word {name},{name}"
            for name, number in zip(CLINICAL, numbers, strict=True)
            for _ in range(number)
        ]
        files.append(root / f"{split}.csv")
        files[-1].write_text("\n".join(["text,label", *rows]) + "\n")
    return files


def text_folder(root: Path, counts: dict[str, list[int]]) -> str:
    table(root, counts)
    return f"text-folder:{root}"


def hub(root: Path, counts: dict[str, list[int]]) -> str:
    table(root, counts)
    return f"hf:{root}"


@pytest.mark.parametrize(
    "write",
    [image_folder, audio_folder, audio_manifest, text_folder, hub],
    ids=lambda f: f.__name__,
)
class TestAgreedClasses:
    """What a site may lack, and what it may not have."""

    def test_the_order_is_the_contracts_and_a_class_may_be_missing_and_so_may_test(
        self, tmp_path: Path, write: Callable[..., str]
    ) -> None:
        spec = write(tmp_path / "data", {"train": [2, 0, 1]})
        data = load_dataset(spec, reading=AGREED)
        assert list(data.class_names) == list(CLINICAL)
        assert np.bincount(data.train.labels, minlength=3).tolist() == [2, 0, 1]
        assert data.test.inputs.shape == (0, *data.input_shape)
        assert data.test.inputs.dtype == data.train.inputs.dtype

    def test_both_splits_have_the_same_labels(
        self, tmp_path: Path, write: Callable[..., str]
    ) -> None:
        spec = write(tmp_path / "data", {"train": [0, 3, 1], "test": [1, 0, 2]})
        data = load_dataset(spec, reading=AGREED)
        assert np.bincount(data.train.labels, minlength=3).tolist() == [0, 3, 1]
        assert np.bincount(data.test.labels, minlength=3).tolist() == [1, 0, 2]

    @pytest.mark.parametrize(
        "counts", [{"train": [1, 1, 1]}, {"train": [1, 1, 0], "test": [1, 1, 1]}]
    )
    def test_another_class_is_named(
        self, tmp_path: Path, write: Callable[..., str], counts: dict[str, list[int]]
    ) -> None:
        spec = write(tmp_path / "data", counts)
        with pytest.raises(DataError, match="the agreed classes") as caught:
            load_dataset(spec, reading=replace(READING, classes=CLINICAL[:2]))
        assert "malignant" in str(caught.value)
        assert caught.value.expected == "one of: normal, benign"

    def test_without_a_contract_there_must_be_a_test_split(
        self, tmp_path: Path, write: Callable[..., str]
    ) -> None:
        spec = write(tmp_path / "data", {"train": [1, 1, 1]})
        with pytest.raises(DataError, match="test"):
            load_dataset(spec, reading=READING)


@pytest.mark.parametrize("write", [text_folder, hub], ids=lambda f: f.__name__)
def test_a_label_with_white_space_is_named_by_its_row(
    tmp_path: Path, write: Callable[..., str]
) -> None:
    spec = write(tmp_path / "data", {"train": [1, 1, 1], "test": [1, 1, 1]})
    file = tmp_path / "data" / "train.csv"
    file.write_text(file.read_text().replace("benign\n", "benign \n"))
    with pytest.raises(DataError, match="white space") as caught:
        load_dataset(spec, reading=READING)
    assert caught.value.where.endswith("train, row 2")
    assert caught.value.got == "benign "


@pytest.mark.parametrize("kind", ["text-folder", "hf"])
def test_lists_of_labels_are_said_to_be_several_labels(tmp_path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.table({"text": ["one", "two"], "label": [["a"], ["a", "b"]]})
    for split in ("train", "test"):
        pyarrow.parquet.write_table(rows, tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="need a multi-label job"):
        load_dataset(f"{kind}:{tmp_path}", reading=READING)


def owned(root: Path, names: dict[str, list[str]]) -> str:
    """Write images of the owners, by split, below the folders of two classes."""
    value = 0
    for split, owners in names.items():
        for label in ("ill", "well"):
            for owner in owners:
                value += 1
                file = root / split / label / owner / "scan.png"
                file.parent.mkdir(parents=True)
                Image.new("RGB", (4, 4), (value, 0, 0)).save(file)
    return f"image-folder:{root}"


def test_the_folder_below_the_class_names_the_owner(tmp_path: Path) -> None:
    spec = owned(tmp_path, {"train": ["eva", "adam"], "test": ["zoe"]})
    data = load_dataset(spec, reading=Reading(columns=Columns(groups="folder")))
    assert data.train.groups is not None
    assert data.test.groups is not None
    assert data.train.groups.tolist() == ["adam", "eva", "adam", "eva"]
    assert data.test.groups.tolist() == ["zoe", "zoe"]


def test_an_image_in_no_owners_folder_is_named(tmp_path: Path) -> None:
    spec = owned(tmp_path, {"train": ["eva", "adam"], "test": ["zoe"]})
    file = tmp_path / "train" / "ill" / "loose.png"
    Image.new("RGB", (4, 4)).save(file)
    with pytest.raises(DataError, match="in no folder of an owner") as caught:
        load_dataset(spec, reading=Reading(columns=Columns(groups="folder")))
    assert caught.value.where == str(file)


def test_a_table_names_the_owner_of_each_file(tmp_path: Path) -> None:
    spec = image_folder(tmp_path, {"train": [1, 1, 1], "test": [1, 0, 0]})
    files = [file.relative_to(tmp_path) for file in sorted(tmp_path.rglob("*.png"))]
    rows = [f"{file},p{number}" for number, file in enumerate(files)]
    table = tmp_path / "metadata.csv"
    table.write_text("\n".join(["file_name,patient", *rows]))
    reading = Reading(classes=CLINICAL, columns=Columns(groups="patient"))
    data = load_dataset(spec, reading=reading)
    assert data.train.groups is not None
    assert data.test.groups is not None
    assert data.train.groups.tolist() == ["p3", "p1", "p2"]
    assert data.test.groups.tolist() == ["p0"]

    table.write_text("\n".join(["file_name,patient", *rows[:-1]]))
    with pytest.raises(DataError, match=r"metadata\.csv, train/normal/0\.png: the table does not"):
        load_dataset(spec, "x", reading=reading)


def test_a_file_in_both_splits_is_named(tmp_path: Path) -> None:
    spec = image_folder(tmp_path, {"train": [1, 1, 1], "test": [1, 1, 1]})
    (tmp_path / "test" / "benign" / "copy.png").write_bytes(
        (tmp_path / "train" / "normal" / "0.png").read_bytes()
    )
    with pytest.raises(
        DataError, match="files of another split are among the training files"
    ) as caught:
        load_dataset(spec)
    assert caught.value.where == str(tmp_path / "test" / "benign" / "copy.png")
    assert str(tmp_path / "train" / "normal" / "0.png") in str(caught.value.got)


@pytest.mark.parametrize(
    "write", [image_folder, audio_folder, audio_manifest, text_folder], ids=lambda f: f.__name__
)
def test_a_validation_split_of_its_own_is_read(tmp_path: Path, write: Callable[..., str]) -> None:
    counts = {"train": [3, 2, 1], "validation": [2, 1, 0], "test": [1, 1, 1]}
    spec = write(tmp_path / "data", counts)
    for reading in (READING, AGREED):
        data = load_dataset(spec, reading=reading)
        assert data.validation is not None
        names = [data.class_names[label] for label in data.validation.labels.tolist()]
        assert sorted(names) == ["benign", "normal", "normal"]
        assert len(data.validation.inputs) == 3
        assert len(data.test) == 3
        site = site_data(data, None, -1, 1, 0.5)
        assert (len(site.train), len(site.validation)) == (6, 3)
