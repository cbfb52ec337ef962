"""A model is rebuilt from its file alone, and evaluated as it was in its run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.data import DataSet, Examples, load_dataset
from mdc_flower.data.contract import Contract
from mdc_flower.data.readers.builtin import BUILTIN
from mdc_flower.data.readers.vocabulary import Vocabulary
from mdc_flower.jobs.model_files import evaluate_run, load_model
from mdc_flower.jobs.task import load_task
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.batches import InputPipeline, Tensors
from strategies.common.errors import ConfigError, DataError, ModelError, RunError
from strategies.common.files import write_atomically
from strategies.storage.model_files import model_parts, read_model
from strategies.storage.run_directory import BEST_MODEL, CONFIG, GLOBAL_MODEL
from tests.mdc_flower.examples import accuracy_of, evaluated, same_bits

LAB = """
import numpy as np
import torch
from torch import nn
from mdc_flower.data import DataSet, Examples

def examples(count, size, classes):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    return Examples(images, np.arange(count) % classes)

def of(size, names, count=30):
    part = examples(count, size, len(names))
    return DataSet("lab", part, part, names)

def same_classes():
    return of(8, list("0123456789"))

def other_names():
    return of(8, list("abcdefghij"))

def fewer_classes():
    return of(8, list("52"))

def larger_images():
    return of(16, list("0123456789"))

class Projected(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.register_buffer("projection", torch.randn(64, 16), persistent=False)
        self.offset = torch.randn(16)
        self.classes = nn.Linear(16, classes)

    def forward(self, images):
        return self.classes(images.flatten(1) @ self.projection + self.offset)

def projected(shape, classes):
    return Projected(classes)
"""


@pytest.fixture(autouse=True)
def evaluation_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a user's data sets where Python finds them."""
    (tmp_path / "evaluation_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)


def config(**keys: Any) -> RunConfig:
    values = {"dataset": "digits", "model": "mlp", "precision": "none"}
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def run_directory(path: Path, **keys: Any) -> Path:
    """Leave what a run leaves: its config, a last model (seed 2) and a best one (seed 1)."""
    path.mkdir()
    for name, seed in ((GLOBAL_MODEL, 2), (BEST_MODEL, 1)):
        task = load_task(config(seed=seed, **keys))
        arrays = model_arrays(task.new_model())
        write_atomically(path / name, model_parts(arrays, task.model_metadata()))
    (path / CONFIG).write_text(tomli_w.dumps(config(**keys).to_flower()))
    return path


def model_accuracy(seed: int, **keys: Any) -> float:
    data = load_dataset("digits").limited(0, keys.get("max_test_examples", 0))
    model = load_task(config(seed=seed)).new_model()
    return accuracy_of(evaluated(model, Tensors.of(data.test), InputPipeline.of(data)))


@pytest.mark.parametrize("model", ["mlp", "small-cnn"])
def test_a_model_is_rebuilt_to_the_bit_in_evaluation_mode(tmp_path: Path, model: str) -> None:
    run_dir = run_directory(tmp_path / "run", model=model)
    rebuilt, metadata = load_model(run_dir / GLOBAL_MODEL)
    assert same_bits(rebuilt, load_task(config(model=model, seed=2)).new_model())
    assert not rebuilt.training
    assert metadata["model"] == model


def test_a_model_file_needs_nothing_beside_it(tmp_path: Path) -> None:
    file = run_directory(tmp_path / "run") / GLOBAL_MODEL
    alone = tmp_path / "alone.safetensors"
    file.rename(alone)
    result = evaluate_run(alone, "digits", "", best=False)
    assert (result["model"], result["accuracy"]) == ("alone.safetensors", model_accuracy(2))


@pytest.mark.parametrize(
    ("best", "name", "seed"), [(False, GLOBAL_MODEL, 2), (True, BEST_MODEL, 1)]
)
def test_a_runs_model_is_evaluated_on_the_test_examples_of_its_data_set(
    tmp_path: Path, best: bool, name: str, seed: int
) -> None:
    result = evaluate_run(run_directory(tmp_path / "run"), "", "", best)
    assert result.pop("loss") > 0
    recall = result.pop("recall")
    assert list(recall) == [str(digit) for digit in range(10)]
    assert result.pop("balanced-accuracy") == pytest.approx(np.mean(list(recall.values())))
    examples, confusion = result.pop("examples"), result.pop("confusion")
    for digit, counts in confusion.items():
        assert sum(counts.values()) == examples[digit]
        assert counts.get(digit, 0) / examples[digit] == recall[digit]
    assert set(result.pop("precision")) == set(result.pop("auroc")) == set(recall)
    assert result == {
        "model": name,
        "dataset": "digits",
        "num-examples": 355,
        "accuracy": model_accuracy(seed),
    }
    assert model_accuracy(1) != model_accuracy(2)


def test_the_runs_limit_of_test_examples_holds(tmp_path: Path) -> None:
    run_dir = run_directory(tmp_path / "run", max_test_examples=40, max_train_examples=50)
    result = evaluate_run(run_dir, "", "", best=False)
    assert result["num-examples"] == 40
    assert result["accuracy"] == model_accuracy(2, max_test_examples=40)


def test_the_runs_data_root_holds_unless_another_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: list[str] = []

    def load(data_root: str) -> DataSet:
        roots.append(data_root)
        return load_dataset("digits")

    monkeypatch.setitem(BUILTIN, "cifar10", load)
    run_dir = run_directory(tmp_path / "run", dataset="cifar10", data_root="/the/runs")
    load_dataset.cache_clear()
    roots.clear()
    evaluate_run(run_dir, "", "", best=False)
    evaluate_run(run_dir, "", "/another", best=False)
    assert roots == ["/the/runs", "/another"]


def test_images_of_a_folder_are_resized_as_in_the_run(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            image = Image.new("RGB", (5, 5), "red" if split == "test" else "blue")
            image.save(tmp_path / "images" / split / name / "1.png")
    spec = f"image-folder:{tmp_path / 'images'}"
    run_dir = run_directory(tmp_path / "run", dataset=spec, image_size=8)
    assert evaluate_run(run_dir, "", "", best=False)["num-examples"] == 2


def test_another_data_set_of_the_same_classes_is_normalized_as_the_models_own(
    tmp_path: Path,
) -> None:
    run_dir = run_directory(tmp_path / "run")
    result = evaluate_run(run_dir, "evaluation_lab:same_classes", "", best=False)
    assert (result["dataset"], result["num-examples"]) == ("lab", 30)
    test = load_dataset("evaluation_lab:same_classes").test  # it has no statistics of its own
    model = load_task(config(seed=2)).new_model()
    own = InputPipeline((0.305,), (0.376,))
    assert result["loss"] == evaluated(model, Tensors.of(test), own).loss


def test_a_data_set_may_have_some_of_the_classes_in_its_own_order(tmp_path: Path) -> None:
    run_dir = run_directory(tmp_path / "run")
    result = evaluate_run(run_dir, "evaluation_lab:fewer_classes", "", best=False)
    assert {name for name, count in result["examples"].items() if count} == {"5", "2"}
    # Label 0 is the digit 5, label 1 the digit 2, by their names.
    test = load_dataset("evaluation_lab:fewer_classes").test
    own = Tensors.of(Examples(test.inputs, np.array([5, 2])[test.labels]))
    model = load_task(config(seed=2)).new_model()
    assert result["loss"] == evaluated(model, own, InputPipeline((0.305,), (0.376,))).loss


def test_a_data_set_of_other_classes_is_refused_with_both(tmp_path: Path) -> None:
    run_dir = run_directory(tmp_path / "run")
    with pytest.raises(DataError, match="classes differ from the model's") as caught:
        evaluate_run(run_dir, "evaluation_lab:other_names", "", best=False)
    names = load_dataset("evaluation_lab:other_names").class_names
    assert (caught.value.where, caught.value.got) == ("data set 'lab'", names)
    assert caught.value.expected == str(list("0123456789"))


@pytest.mark.parametrize("model", ["mlp", "small-cnn"])
def test_a_data_set_of_another_shape_is_refused_with_both(tmp_path: Path, model: str) -> None:
    # small-cnn would take any size, and give an accuracy that means nothing.
    run_dir = run_directory(tmp_path / "run", model=model)
    with pytest.raises(DataError) as caught:
        evaluate_run(run_dir, "evaluation_lab:larger_images", "", best=False)
    assert "16" in str(caught.value)
    assert "8" in caught.value.expected


def test_what_a_model_draws_beside_its_arrays_is_the_same_as_in_its_run(tmp_path: Path) -> None:
    model = "evaluation_lab:projected"
    run_dir = run_directory(tmp_path / "run", model=model)
    assert read_model(run_dir / GLOBAL_MODEL)[1]["seed"] == 2
    rebuilt, _ = load_model(run_dir / GLOBAL_MODEL)
    own = load_task(config(model=model, seed=2)).new_model()
    data = load_dataset("digits")
    results = [
        evaluated(one, Tensors.of(data.test), InputPipeline.of(data)) for one in (rebuilt, own)
    ]
    assert results[0] == results[1]


# Texts


def texts_in(folder: Path, word: str = "word") -> str:
    folder.mkdir()
    for split in ("train", "test"):
        lines = [f"{row % 2} {word}{row % 7} other\n" for row in range(20)]
        (folder / f"{split}.txt").write_text("".join(lines))
    return f"text-folder:{folder}"


@pytest.mark.parametrize("model", ["text-cnn", "text-gru"])
def test_a_model_of_texts_is_rebuilt_from_its_file_and_evaluated(
    tmp_path: Path, model: str
) -> None:
    keys = {"dataset": texts_in(tmp_path / "texts"), "model": model, "text_length": 5}
    run_dir = run_directory(tmp_path / "run", **keys)
    rebuilt, metadata = load_model(run_dir / GLOBAL_MODEL)
    assert same_bits(rebuilt, load_task(config(seed=2, **keys)).new_model())
    assert metadata["num-tokens"] == 2 + 7 + 1
    assert evaluate_run(run_dir, "", "", best=False)["num-examples"] == 20


def test_texts_of_another_vocabulary_are_refused_by_a_model_without_its_own(
    tmp_path: Path,
) -> None:
    keys = {"dataset": texts_in(tmp_path / "texts"), "model": "text-cnn", "text_length": 5}
    run_dir = run_directory(tmp_path / "run", **keys)
    arrays, metadata = read_model(run_dir / GLOBAL_MODEL)
    del metadata["inputs"]  # as in files of earlier versions
    write_atomically(run_dir / GLOBAL_MODEL, model_parts(arrays, metadata))
    other = texts_in(tmp_path / "others", "term")  # as many tokens
    with pytest.raises(DataError, match="vocabulary differs from the model's") as caught:
        evaluate_run(run_dir, other, "", best=False)
    assert len(caught.value.expected) == 64


def test_a_model_file_of_a_version_before_texts_is_rebuilt(tmp_path: Path) -> None:
    run_dir = run_directory(tmp_path / "run")
    path = run_dir / GLOBAL_MODEL
    arrays, metadata = read_model(path)
    old = {k: v for k, v in metadata.items() if k not in ("num-tokens", "vocabulary", "seed")}
    write_atomically(path, model_parts(arrays, old))
    assert evaluate_run(run_dir, "", "", best=False)["accuracy"] == model_accuracy(2)


def test_under_a_contract_files_are_read_into_its_shape(tmp_path: Path) -> None:
    spec = texts_in(tmp_path / "texts")
    words = tmp_path / "words.txt"
    words.write_text("other\n")
    values = {
        "name": "words",
        "type": "int64",
        "shape": [4],
        "classes": ["0", "1"],
        "num-tokens": 3,
        "vocabulary": Vocabulary(("other",)).sha256,
    }
    contract = Contract.read(values, "here").to_spec()
    keys = {"dataset": contract, "model": "text-cnn", "vocabulary": str(words)}
    run_dir = run_directory(tmp_path / "run", **keys)
    assert evaluate_run(run_dir, spec, "", best=False)["num-examples"] == 20


def test_evaluation_leaves_the_number_of_threads(tmp_path: Path) -> None:
    run_dir = run_directory(tmp_path / "run", threads_per_site=3)
    before = torch.get_num_threads()
    evaluate_run(run_dir, "", "", best=False)
    assert torch.get_num_threads() == before


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no model here") as caught:
        evaluate_run(tmp_path, "", "", best=True)
    assert caught.value.where == str(tmp_path / BEST_MODEL)


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    file = run_directory(tmp_path / "run") / GLOBAL_MODEL
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match="damaged") as caught:
        load_model(file)
    assert caught.value.where == str(file)


def changed_file(path: Path, **metadata: Any) -> Path:
    task = load_task(config())
    arrays = model_arrays(task.new_model())
    write_atomically(path, model_parts(arrays, task.model_metadata() | metadata))
    return path


def test_a_model_that_cannot_be_built_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'not_installed' cannot be imported"):
        load_model(changed_file(tmp_path / "model", model="not_installed:net"))


def test_arrays_that_do_not_fit_the_model_of_their_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not match the model") as caught:
        load_model(changed_file(tmp_path / "model", **{"class-names": ["a", "b"]}))
    assert caught.value.where == "array '3.weight'"


def test_a_file_that_was_not_written_by_this_project_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="does not say how to rebuild the model"):
        load_model(tmp_path / "other.safetensors")
