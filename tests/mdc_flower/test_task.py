"""The task: data set, model and settings of a run, as everyone in it puts them together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mdc_flower
from mdc_flower.batches import InputPipeline
from mdc_flower.config import RunConfig, read_run_config, read_site_config
from mdc_flower.data import DataSet, load_dataset
from mdc_flower.data.builtin import BUILTIN
from mdc_flower.task import Task, load_task
from mdc_flower.training import TrainSettings
from strategies.errors import ConfigError, ModelError
from tests.mdc_flower.examples import same_bits

LAB = """
import numpy as np
from mdc_flower.data import DataSet, Examples

def words():
    tokens = Examples(np.zeros((40, 5), np.int64), np.arange(40) % 2)
    return DataSet("words", tokens, tokens, ["no", "yes"])
"""


@pytest.fixture(autouse=True)
def task_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a user's module with a data set of its own where Python finds it."""
    (tmp_path / "task_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)


def config(**keys: Any) -> RunConfig:
    values: dict[str, Any] = {"dataset": "digits", "model": "mlp", "max-train-examples": 200}
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def task(**keys: Any) -> Task:
    return load_task(config(**keys))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"precision": "none"},
            TrainSettings("sgd", 0.9, True, 5e-4, 32, 0.0, 0.0, None, False),
        ),
        (
            {
                "optimizer": "adamw",
                "momentum": 0.5,
                "nesterov": False,
                "weight_decay": 0.1,
                "batch_size": 8,
                "label_smoothing": 0.2,
                "clip_norm": 3.0,
                "precision": "bf16",
                "compile": True,
            },
            TrainSettings("adamw", 0.5, False, 0.1, 8, 0.2, 3.0, torch.bfloat16, True),
        ),
    ],
)
def test_each_key_reaches_its_setting(keys: dict[str, Any], expected: TrainSettings) -> None:
    assert task(**keys).settings == expected


def test_the_pipeline_is_the_data_sets_with_the_runs_augmentation_and_layout() -> None:
    one = task(augment="crop", channels_last=False)
    assert one.pipeline == InputPipeline((0.305,), (0.376,), "crop", channels_last=False)


def test_the_data_set_is_cut_to_the_runs_maxima() -> None:
    one = task(max_test_examples=50)
    assert (len(one.dataset.train), len(one.dataset.test)) == (200, 50)


def test_the_initial_model_depends_on_the_seed_alone() -> None:
    assert same_bits(task(seed=3).new_model(), task(seed=3, lr_max=0.5).new_model())
    assert not same_bits(task(seed=3).new_model(), task(seed=4).new_model())


def test_each_new_model_is_another_object_with_the_same_weights() -> None:
    one = task()
    first, second = one.new_model(), one.new_model()
    assert first is not second
    assert same_bits(first, second)


def test_a_model_that_does_not_fit_the_data_is_refused_before_training() -> None:
    with pytest.raises(ModelError, match="does not fit the data") as caught:
        task(dataset="task_lab:words", max_train_examples=0).new_model()
    assert caught.value.expected == "a model that takes inputs (5,)"


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such model"):
        task(model="small-cn").new_model()


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such device"):
        task(device="abacus")


def test_a_sites_own_data_set_goes_before_the_runs() -> None:
    assert load_task(config(), data="task_lab:words").dataset.name == "words"
    assert load_task(config()).dataset.name == "digits"


def test_a_sites_own_device_goes_before_the_runs() -> None:
    assert load_task(config(device="abacus"), device="cpu").device.type == "cpu"


def test_a_task_is_loaded_once_in_a_process() -> None:
    assert task() is task()
    assert task() is not task(seed=2)


@pytest.fixture
def data_roots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the folders in which a built-in data set is looked for."""
    roots: list[str] = []

    def load(data_root: str) -> DataSet:
        roots.append(data_root)
        return load_dataset("task_lab:words")

    monkeypatch.setitem(BUILTIN, "cifar10", load)
    return roots


def test_a_sites_own_data_root_goes_before_the_runs(data_roots: list[str]) -> None:
    one = config(dataset="cifar10", data_root="/the/runs")
    load_task(one)
    load_task(one, data_root="/the/sites")
    assert data_roots == ["/the/runs", "/the/sites"]


def test_images_of_a_folder_are_resized_to_the_runs_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (5, 5)).save(tmp_path / "images" / split / name / "1.png")
    one = task(dataset=f"image-folder:{tmp_path / 'images'}", image_size=8)
    assert one.dataset.input_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("kind", "key", "values"),
    [
        ("dirichlet", "partition_alpha", (1.0, 100.0)),
        ("shards", "partition_shards", (3, 5)),
        ("size-skew", "partition_size_ratio", (2.0, 3.0)),
    ],
)
def test_the_settings_of_a_partition_reach_it(
    kind: str, key: str, values: tuple[float, float]
) -> None:
    cuts = [task(partition=kind, **{key: value}).partition(3) for value in values]
    assert cuts[0].sha256 != cuts[1].sha256


def test_the_partition_follows_the_keys() -> None:
    sizes = [len(rows) for rows in task().partition(3).rows]
    assert sorted(sizes) == [66, 67, 67]
    skewed = task(partition="size-skew", partition_size_ratio=4.0).partition(3)
    # Weights 1, 2, 4 of 7: 200 examples end at 200/7 = 28.6, 600/7 = 85.7 and 200.
    assert [len(rows) for rows in skewed.rows] == [29, 57, 114]
    assert task(seed=2).partition(3).sha256 != task().partition(3).sha256


def test_the_coordinator_holds_what_the_sites_hold_together() -> None:
    one = task(validation_fraction=0.25)
    held = one.coordinator_data(4)
    sites = [
        one.site_data(read_site_config({"partition-id": i, "num-partitions": 4})) for i in range(4)
    ]
    # 200 examples at 4 sites: 50 each, of which round(12.5) = 12 are held out.
    assert [(len(s.train), len(s.validation)) for s in sites] == [(38, 12)] * 4
    assert (len(held.pooled), len(held.validation)) == (4 * 38, 4 * 12)
    for whole, parts in (
        (held.pooled, [s.train for s in sites]),
        (held.validation, [s.validation for s in sites]),
    ):
        images = np.concatenate([part.inputs for part in parts])
        assert sorted(image.tobytes() for image in images) == sorted(
            image.tobytes() for image in whole.inputs
        )


def test_a_real_site_has_all_of_its_own_data() -> None:
    data = task(validation_fraction=0.25).site_data(read_site_config({"site": "north"}))
    assert (len(data.train), len(data.validation)) == (150, 50)


def test_without_partitions_the_coordinator_cuts_its_own_data_set() -> None:
    held = task(validation_fraction=0.25).coordinator_data(0)
    assert (len(held.pooled), len(held.validation), len(held.test)) == (150, 50, 355)


def test_the_metadata_suffice_to_rebuild_the_model_and_hold_no_time_and_no_path(
    tmp_path: Path,
) -> None:
    one = task(output_dir=str(tmp_path), data_root=str(tmp_path))
    assert one.model_metadata() == {
        "format": 1,
        "version": mdc_flower.__version__,
        "model": "mlp",
        "dataset": "digits",
        "input-shape": [1, 8, 8],
        "class-names": list("0123456789"),
        "mean": [0.305],
        "std": [0.376],
    }
