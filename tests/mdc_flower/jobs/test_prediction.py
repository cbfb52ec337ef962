"""A trained model reads raw inputs as its run did: images, recordings, texts, tables, arrays."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mdc_flower
from mdc_flower.config import read_run_config
from mdc_flower.data import load_dataset
from mdc_flower.data.input_form import InputForm
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.model_files import evaluate_run
from strategies.common.errors import ConfigError, DataError
from strategies.storage.run_directory import GLOBAL_MODEL, read_summary
from tests import tiny
from tests.mdc_flower.commands import mdc

CLASSES = ["cat", "dog", "eel"]
SHORT: dict[str, Any] = {"epochs": "fixed", "local-epochs": 4, "epoch-budget": 4, "batch-size": 8}
Predict = Callable[..., Any]


def trained(folder: Path, **keys: Any) -> Path:
    values = {**SHORT, **{k.replace("_", "-"): v for k, v in keys.items()}}
    run_in_process(read_run_config({**values, "output-dir": str(folder / "run")}), 2)
    return folder / "run"


def accuracy(labels: list[str], true: list[str]) -> float:
    return float(np.mean([one == other for one, other in zip(labels, true, strict=True)]))


# Images


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images of three classes, of several sizes: each class has a color."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for label, name in enumerate(CLASSES):
            (root / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 100, (6 + number % 3, 9, 3), np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(root / "images" / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def of_images(pictures: Path) -> Path:
    spec = f"image-folder:{pictures / 'images'}"
    return trained(pictures, dataset=spec, model="mlp", image_size=8, lr_max=0.01)


def true_classes(names: Any) -> list[str]:
    return [Path(name).parent.name for name in names]


def test_images_of_a_folder_are_predicted_as_in_the_evaluation_of_the_run(
    pictures: Path, of_images: Path
) -> None:
    found = mdc_flower.predict(of_images, pictures / "images" / "test")
    assert len(found.names) == 18
    reached = read_summary(of_images)["final"]["test-accuracy"]
    assert reached > 0.8
    assert accuracy(found.labels, true_classes(found.names)) == reached
    assert found.probabilities.sum(1) == pytest.approx(np.ones(18))


def test_a_model_file_alone_knows_the_size_of_its_images(
    pictures: Path, of_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes((of_images / GLOBAL_MODEL).read_bytes())
    found = mdc_flower.predict(tmp_path / "model.safetensors", pictures / "images" / "test")
    other = mdc_flower.predict(of_images, pictures / "images" / "test")
    assert found.labels == other.labels


def test_the_command_writes_a_row_per_file_and_counts_what_it_left_out(
    pictures: Path, of_images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    (folder / "cat").mkdir(parents=True)
    source = pictures / "images" / "test" / "cat" / "0.png"
    for name in ("cat/a.png", "b.PNG", ".hidden.png", "cat/c.heic", "notes.txt"):
        (folder / name).write_bytes(source.read_bytes())
    (folder / "linked").symlink_to(pictures / "images" / "test" / "eel")
    (folder / "cat" / "loop").symlink_to(folder)
    result = mdc("predict", of_images, folder, "--output", tmp_path / "table.csv")
    assert result.exit_code == 0, result.output
    assert "1 .heic" in result.output
    assert "1 .txt" in result.output
    with (tmp_path / "table.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    linked = [f"linked/{number}.png" for number in range(6)]
    assert [row["input"] for row in rows] == ["b.PNG", "cat/a.png", *linked]
    assert rows[0]["label"] == "cat"
    assert sum(float(rows[0][f"p({name})"]) for name in CLASSES) == pytest.approx(1, abs=1e-4)
    printed = mdc("predict", of_images, source)
    assert printed.output.splitlines()[0] == "input,label,p(cat),p(dog),p(eel)"


def test_raw_arrays_are_normalized_and_floats_in_their_place_are_refused(
    pictures: Path, of_images: Path
) -> None:
    data = load_dataset(
        f"image-folder:{pictures / 'images'}", "", read_run_config({"image-size": 8}).reading()
    )
    found = mdc_flower.predict(of_images, data.test.inputs)
    true = [CLASSES[label] for label in data.test.labels]
    assert accuracy(found.labels, true) == read_summary(of_images)["final"]["test-accuracy"]
    with pytest.raises(DataError, match=r"another type.*float32.*uint8, with values from 0 to 255"):
        mdc_flower.predict(of_images, data.test.inputs.astype(np.float32) / 255)
    with pytest.raises(DataError, match=r"another shape.*\[3, 8, 8\].*number of inputs, 3, 8, 8"):
        mdc_flower.predict(of_images, data.test.inputs[0])


def test_a_folder_without_images_and_a_damaged_one_are_named(
    of_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "scan.dcm").write_bytes(b"")
    with pytest.raises(DataError, match=r"no file that can be read.*\.dcm"):
        mdc_flower.predict(of_images, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    result = mdc("predict", of_images, tmp_path)
    assert result.exit_code == 2
    assert "broken.png" in result.output
    assert mdc("predict", of_images, tmp_path / "nothing").exit_code == 2


def test_a_test_folder_alone_or_with_some_of_the_classes_is_evaluated(
    pictures: Path, of_images: Path, tmp_path: Path
) -> None:
    whole = evaluate_run(of_images, "", "", best=False)
    alone = evaluate_run(of_images, f"image-folder:{pictures / 'images' / 'test'}", "", False)
    for name in ("accuracy", "loss", "recall", "precision", "auroc", "confusion", "examples"):
        assert alone[name] == whole[name], name
    assert whole["examples"] == dict.fromkeys(CLASSES, 6)
    (tmp_path / "some" / "test").mkdir(parents=True)
    for name in ("cat", "eel"):
        (tmp_path / "some" / "test" / name).symlink_to(pictures / "images" / "test" / name)
    some = evaluate_run(of_images, f"image-folder:{tmp_path / 'some'}", "", False)
    assert some["examples"] == {"cat": 6, "dog": 0, "eel": 6}
    assert (some["recall"]["dog"], some["auroc"]["dog"]) == (None, None)
    for name in ("cat", "eel"):
        assert some["recall"][name] == whole["recall"][name]
        assert some["confusion"][name] == whole["confusion"][name]
    (tmp_path / "some" / "test" / "yak").mkdir()
    with pytest.raises(DataError, match="no class 'yak'"):
        evaluate_run(of_images, f"image-folder:{tmp_path / 'some'}", "", False)


def test_the_command_prints_figures_of_each_class(of_images: Path) -> None:
    result = json.loads(mdc("evaluate", of_images).output)
    right = sum(counts.get(name, 0) for name, counts in result["confusion"].items())
    assert right / result["num-examples"] == result["accuracy"]
    for name in CLASSES:
        said = sum(counts.get(name, 0) for counts in result["confusion"].values())
        assert result["precision"][name] == result["confusion"][name].get(name, 0) / said


# Texts, recordings, tables


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    (folder / "texts").mkdir()
    words = {"good": ["fine", "great", "lovely"], "bad": ["poor", "awful", "dull"]}
    for split, count in (("train", 60), ("test", 20)):
        rows = [
            f"{label},{random.choice(words[label])} film {random.choice(words[label])}\n"
            for label in words
            for _ in range(count)
        ]
        (folder / "texts" / f"{split}.csv").write_text("label,text\n" + "".join(rows))
    spec = f"text-folder:{folder / 'texts'}"
    return trained(folder, dataset=spec, model="text-cnn", text_length=4, lr_max=0.1)


def test_texts_are_tokenized_with_the_vocabulary_in_the_models_file(
    of_texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes((of_texts / GLOBAL_MODEL).read_bytes())
    model = mdc_flower.trained_model(tmp_path / "model.safetensors")
    assert model.predict(["a great, lovely film", "awful and dull"]).labels == ["good", "bad"]
    table = of_texts.parent / "texts" / "test.csv"
    found = model.predict(table)
    true = [line.partition(",")[0] for line in table.read_text().splitlines()[1:]]
    assert accuracy(found.labels, true) == read_summary(of_texts)["final"]["test-accuracy"] > 0.9
    (tmp_path / "lines.txt").write_text("great film\n\npoor film\n")
    assert model.predict(tmp_path / "lines.txt").labels == ["good", "bad"]
    (tmp_path / "other.tsv").write_text("id\treview\n1\tlovely\n")
    assert model.predict(tmp_path / "other.tsv", column="review").labels == ["good"]


def test_another_folder_of_texts_is_evaluated_with_the_models_vocabulary(
    of_texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "test.csv").write_text("text,label\nlovely film,good\nunseen words,good\n")
    found = evaluate_run(of_texts, f"text-folder:{tmp_path}", "", best=False)
    assert found["examples"] == {"bad": 0, "good": 2}


def test_recordings_are_read_with_the_runs_sample_rate(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    for split, first, count in (("train", 0, 8), ("test", 8, 3)):
        for name, pitch in (("high", 1500), ("low", 200)):
            (tmp_path / "sounds" / split / name).mkdir(parents=True)
            for number in range(first, first + count):
                wave = np.sin(2 * np.pi * (pitch + 5 * number) * np.arange(4000) / 8000)
                file = tmp_path / "sounds" / split / name / f"{number}.wav"
                soundfile.write(file, wave.astype(np.float32), 8000)
    run = trained(
        tmp_path,
        dataset=f"audio-folder:{tmp_path / 'sounds'}",
        model="mlp",
        audio_sample_rate=4000,
        audio_mels=16,
        audio_seconds=0.5,
        lr_max=0.01,
    )
    model = mdc_flower.trained_model(run / GLOBAL_MODEL)
    assert (model.form.sample_rate, model.form.seconds) == (4000, 0.5)
    found = model.predict(tmp_path / "sounds" / "test")
    reached = read_summary(run)["final"]["test-accuracy"]
    assert accuracy(found.labels, true_classes(found.names)) == reached == 1
    alone = evaluate_run(run, f"audio-folder:{tmp_path / 'sounds' / 'test'}", "", best=False)
    assert alone["accuracy"] == 1


@pytest.fixture(scope="module")
def of_vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {k: tiny.KEYS[k] for k in ("dataset", "model")}
    return trained(tmp_path_factory.mktemp("vectors"), lr_max=0.5, **keys)


def test_a_table_of_numbers_is_predicted_row_by_row(of_vectors: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b,c,d\n3,0,0,0\n-3,0,0,0\n")
    found = mdc_flower.predict(of_vectors, file)
    assert (list(found.names), found.labels) == (["1", "2"], ["high", "low"])
    for content, said in (
        ("a,b,c\n1,2,3\n", "another number of columns"),
        ("a,b,c,d\n1,2,x,4\n", "row 1, c: the value is not a number"),
        ("a,b,c,d\n1,2,nan,4\n", "row 1: a value is not finite"),
        ("a,b,c,d\n1,2,3\n", "row 1: the number of values differs"),
        ("a,b,c,d\n", "another shape"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=said):
            mdc_flower.predict(of_vectors, file)
    np.save(tmp_path / "rows.npy", tiny.vectors().test.inputs)
    labels = mdc_flower.predict(of_vectors, tmp_path / "rows.npy").labels
    true = [tiny.vectors().class_names[label] for label in tiny.vectors().test.labels]
    assert accuracy(labels, true) == read_summary(of_vectors)["final"]["test-accuracy"]
    with pytest.raises(DataError, match="does not take such files"):
        mdc_flower.predict(of_vectors, tmp_path)


def test_tokens_out_of_range_are_refused(of_texts: Path) -> None:
    model = mdc_flower.trained_model(of_texts)
    with pytest.raises(DataError, match="token is out of range"):
        model.predict(np.full((1, 4), model.form.num_tokens))
    with pytest.raises(DataError, match="not tokens"):
        model.predict(np.zeros((1, 4)))


def test_a_form_without_metadata_is_bytes_for_images_and_any_numbers_for_others() -> None:
    assert InputForm.of({"input-shape": [1, 8, 8]}).dtype == "uint8"
    assert InputForm.of({"input-shape": [30]}).dtype == ""


def test_a_job_of_ones_own_has_no_classes(tmp_path: Path) -> None:
    keys = {"job": "tests.tiny_jobs:line", "local_epochs": 1, "epoch_budget": 1}
    with pytest.raises(ConfigError, match="only a classification names classes"):
        mdc_flower.predict(trained(tmp_path, **keys), np.zeros((1, 1)))


def test_a_users_modules_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDC_USER_FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lab_of_a_user.py").write_text(
        "from tests.tiny import linear, vectors\n__all__ = ['linear', 'vectors']\n"
    )
    run = trained(tmp_path, dataset="lab_of_a_user:vectors", model="lab_of_a_user:linear")
    del sys.modules["lab_of_a_user"]
    sys.path.remove(str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("MDC_USER_FOLDER", str(tmp_path / "elsewhere"))
    load_dataset.cache_clear()
    reached = evaluate_run(run, "", "", best=False)["accuracy"]
    assert reached == read_summary(run)["final"]["test-accuracy"]
