"""The task: data set, model and settings of a run, as everyone in it puts them together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

import mdc_flower
from mdc_flower.config import RunConfig, SiteConfig, read_run_config, read_site_config
from mdc_flower.data import DataSet, load_dataset
from mdc_flower.data.contract import Contract
from mdc_flower.data.readers.builtin import BUILTIN
from mdc_flower.data.readers.vocabulary import Vocabulary
from mdc_flower.jobs.task import Task, load_site_task, load_task
from mdc_flower.models.build import user_module
from mdc_flower.training.batches import InputPipeline
from mdc_flower.training.loop import TrainSettings
from strategies.common.errors import ConfigError, DataError, ModelError
from tests.mdc_flower.examples import same_bits

LAB = """
import numpy as np
from torch import nn
from mdc_flower.data import DataSet, Examples

def scans():
    images = np.arange(60 * 64, dtype=np.uint32).reshape(60, 1, 8, 8) % 256
    train = Examples(images.astype(np.uint8), np.arange(60) % 3)
    return DataSet("scans", train, train, ["a", "b", "c"], (0.9,), (0.8,))

def viewing(shape, classes):
    return Viewing(classes)

class Viewing(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
        self.classes = nn.Linear(32, classes)

    def forward(self, images):
        return self.classes(self.maps(images).view(len(images), -1))

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


def test_a_model_that_views_is_refused_under_channels_last_and_taken_without() -> None:
    with pytest.raises(ModelError, match="channels-last"):
        task(model="task_lab:viewing").new_model()
    task(model="task_lab:viewing", channels_last=False).check_model()


def test_a_model_that_does_not_fit_the_data_is_refused_before_training() -> None:
    with pytest.raises(ModelError, match="does not fit the data") as caught:
        task(dataset="task_lab:words", max_train_examples=0).new_model()
    assert caught.value.expected == "a model that accepts inputs of shape (5,)"


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such model"):
        task(model="small-cn").new_model()


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such device"):
        task(device="abacus")


def site_task(run: RunConfig | None = None, **keys: Any) -> Task:
    """Return the task of the site north."""
    values = {"site": "north", **{k.replace("_", "-"): v for k, v in keys.items()}}
    return load_site_task(run or config(), read_site_config(values))


def test_a_sites_own_data_set_goes_before_the_runs() -> None:
    assert site_task(data="task_lab:words").dataset.name == "words"
    assert site_task().dataset.name == "digits"


def test_a_site_without_keys_of_its_own_has_the_runs_task() -> None:
    run = config(augment="crop", max_test_examples=50)
    ours, theirs = load_task(run), site_task(run)
    assert (theirs.settings, theirs.pipeline) == (ours.settings, ours.pipeline)
    assert theirs.dataset is ours.dataset
    assert same_bits(theirs.new_model(), ours.new_model())


def test_a_sites_own_device_goes_before_the_runs() -> None:
    assert site_task(config(device="abacus"), device="cpu").device.type == "cpu"


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
    site_task(one, data_root="/the/sites")
    assert data_roots == ["/the/runs", "/the/sites"]


def test_images_of_a_folder_are_resized_to_the_runs_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            image = Image.new("RGB", (5, 5), "red" if split == "test" else "blue")
            image.save(tmp_path / "images" / split / name / "1.png")
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


# Under a contract

SCANS = Contract(
    name="scans-2026",
    type="uint8",
    shape=(1, 8, 8),
    classes=("a", "b", "c"),
    mean=(0.5,),
    std=(0.25,),
)


def write_contract(folder: Path, contract: Contract = SCANS) -> str:
    path = folder / "contract.toml"
    path.write_text(tomli_w.dumps({"contract": contract.model_dump(by_alias=True)}))
    return str(path)


def under_contract(**keys: Any) -> RunConfig:
    return config(**{"dataset": SCANS.to_spec(), "max_train_examples": 0, **keys})


def test_under_a_contract_a_site_normalizes_with_the_contracts_statistics(tmp_path: Path) -> None:
    own = site_task(data="task_lab:scans")
    assert own.pipeline == InputPipeline((0.9,), (0.8,))
    one = site_task(data="task_lab:scans", contract=write_contract(tmp_path))
    assert one.pipeline == InputPipeline((0.5,), (0.25,))
    assert one.dataset.name == "scans-2026"
    # 255 of 255 is 1, and (1 - 0.5) / 0.25 = 2; 0 becomes -2.
    pixels = torch.tensor([[[[255, 0]]]], dtype=torch.uint8)
    assert one.pipeline(pixels, torch.device("cpu")).flatten().tolist() == [2.0, -2.0]


def test_a_contract_without_statistics_takes_a_sites_own_away(tmp_path: Path) -> None:
    plain = SCANS.model_copy(update={"mean": (), "std": ()})
    one = site_task(data="task_lab:scans", contract=write_contract(tmp_path, plain))
    assert one.pipeline == InputPipeline()


def test_data_that_do_not_keep_the_sites_contract_are_refused(tmp_path: Path) -> None:
    others = SCANS.model_copy(update={"classes": ("b", "a", "d")})
    with pytest.raises(DataError, match="a class that is not in the contract"):
        site_task(data="task_lab:scans", contract=write_contract(tmp_path, others))


def test_the_contract_gives_the_order_of_the_classes(tmp_path: Path) -> None:
    swapped = SCANS.model_copy(update={"classes": ("b", "a", "c")})
    one = site_task(data="task_lab:scans", contract=write_contract(tmp_path))
    (tmp_path / "other").mkdir()
    theirs = write_contract(tmp_path / "other", swapped)
    other = site_task(data="task_lab:scans", contract=theirs)
    assert list(other.dataset.class_names) == ["b", "a", "c"]
    labels = np.array([1, 0, 2])[one.dataset.train.labels]
    assert other.dataset.train.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(("promised", "kept"), [(60, True), (61, False)])
def test_a_promise_is_of_all_the_sites_data_however_little_the_run_takes(
    tmp_path: Path, promised: int, kept: bool
) -> None:
    run = config(max_train_examples=10)
    keys = {
        "data": "task_lab:scans",
        "contract": write_contract(tmp_path),
        "min_examples": promised,
    }
    if kept:
        assert len(site_task(run, **keys).dataset.train) == 10
    else:
        with pytest.raises(DataError, match="fewer training examples than the site has promised"):
            site_task(run, **keys)


def test_a_contract_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the file cannot be read"):
        site_task(data="task_lab:scans", contract=str(tmp_path / "absent.toml"))


def test_the_runs_contract_binds_a_site_that_has_no_file_of_it() -> None:
    one = site_task(under_contract(), data="task_lab:scans")
    assert one.pipeline == InputPipeline((0.5,), (0.25,))
    with pytest.raises(DataError, match="a class that is not in the contract"):
        site_task(under_contract(), data="digits")


def test_a_run_under_another_contract_than_the_sites_is_refused(tmp_path: Path) -> None:
    keys = {"data": "task_lab:scans", "contract": write_contract(tmp_path)}
    assert site_task(under_contract(), **keys).dataset.name == "scans-2026"
    other = SCANS.model_copy(update={"mean": (0.75,)})
    with pytest.raises(
        ConfigError, match="data contract differs from the one that this site"
    ) as caught:
        site_task(under_contract(dataset=other.to_spec()), **keys)
    assert caught.value.where == "node config, contract"


@pytest.mark.parametrize("data", ["", SCANS.to_spec()])
def test_a_site_without_examples_is_refused_by_key(data: str) -> None:
    with pytest.raises(ConfigError, match="this site has no data set") as caught:
        site_task(under_contract(), data=data)
    assert caught.value.where == "node config, data"


def test_a_coordinator_without_data_builds_the_sites_model() -> None:
    ours, theirs = load_task(under_contract()), site_task(under_contract(), data="task_lab:scans")
    assert same_bits(ours.new_model(), theirs.new_model())
    assert ours.pipeline == theirs.pipeline
    assert ours.model_metadata() == theirs.model_metadata()
    held = ours.coordinator_data(0)
    assert [len(part) for part in (held.pooled, held.validation, held.test)] == [0, 0, 0]


def test_a_contract_cannot_be_cut_into_simulated_sites() -> None:
    with pytest.raises(ConfigError, match="more sites than training examples"):
        load_task(under_contract()).coordinator_data(2)


@pytest.mark.parametrize(
    ("kind", "shape"), [("uint8", (3, 16, 16)), ("float32", (7,)), ("int64", (5,))]
)
def test_a_model_is_checked_against_the_contracts_examples(
    kind: Any, shape: tuple[int, ...]
) -> None:
    contract = Contract(name="odd", type=kind, shape=shape, classes=("no", "yes"))
    spec = contract.to_spec()
    if kind == "int64":  # a model of numbers cannot take tokens
        with pytest.raises(ModelError, match="does not fit the data"):
            task(dataset=spec).new_model()
    else:
        assert task(dataset=spec).new_model() is not None


# Texts


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Return the data set of a folder of texts, beside a vocabulary that has half of the words."""
    for split in ("train", "test"):
        lines = [f"{row % 2} word{row} other{row % 2}\n" for row in range(20)]
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    (tmp_path / "vocabulary.txt").write_text("other0\nother1\n")
    return f"text-folder:{tmp_path}"


def word_contract() -> Contract:
    values = {
        "name": "words",
        "type": "int64",
        "shape": (3,),
        "classes": ("0", "1"),
        "num-tokens": 4,
        "vocabulary": Vocabulary(("other0", "other1")).sha256,
    }
    return Contract.read(values, "here")


def test_the_number_of_tokens_reaches_the_model(texts: str) -> None:
    one = task(dataset=texts, model="text-cnn", text_length=5, vocabulary_min_count=1)
    assert one.new_model().get_parameter("embedding.weight").shape == (2 + 20 + 2, 64)
    assert one.model_metadata()["num-tokens"] == 24
    assert one.model_metadata()["vocabulary"] == one.dataset.vocabulary != ""


@pytest.mark.parametrize("under", [True, False])
def test_a_real_site_without_a_vocabulary_is_refused_by_key(texts: str, under: bool) -> None:
    run = config(dataset=word_contract().to_spec() if under else texts, max_train_examples=0)
    with pytest.raises(ConfigError, match="this site has no vocabulary") as caught:
        site_task(run, data=texts)
    assert caught.value.where == "node config, vocabulary"


def test_a_simulated_site_has_the_vocabulary_of_the_runs_texts(texts: str) -> None:
    run = config(dataset=texts)
    site = read_site_config({"partition-id": 0, "num-partitions": 2})
    assert load_site_task(run, site).dataset.vocabulary == load_task(run).dataset.vocabulary


def test_a_sites_own_vocabulary_goes_before_the_runs(texts: str, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("other1\nother0\n")
    run = config(dataset=texts, vocabulary=str(tmp_path / "vocabulary.txt"), text_length=3)
    assert load_task(run).dataset.train.inputs[1].tolist() == [1, 3, 0]
    assert site_task(run).dataset.train.inputs[1].tolist() == [1, 3, 0]
    own = site_task(run, vocabulary=str(tmp_path / "own.txt"))
    assert own.dataset.train.inputs[1].tolist() == [1, 2, 0]


def test_a_site_with_the_contracts_vocabulary_has_the_coordinators_model(
    texts: str, tmp_path: Path
) -> None:
    run = config(dataset=word_contract().to_spec(), model="text-gru", max_train_examples=0)
    theirs = site_task(run, data=texts, vocabulary=str(tmp_path / "vocabulary.txt"))
    ours = load_task(run)
    assert theirs.dataset.input_shape == (3,)
    assert same_bits(ours.new_model(), theirs.new_model())
    about = theirs.model_metadata()
    assert about.pop("inputs") == {"kind": "text", "tokens": ["other0", "other1"]}
    assert ours.model_metadata() == {**about, "inputs": {"kind": "text"}}, "it has no vocabulary"
    (tmp_path / "swapped.txt").write_text("other1\nother0\n")
    with pytest.raises(DataError, match="tokens would stand for other words"):
        site_task(run, data=texts, vocabulary=str(tmp_path / "swapped.txt"))


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
        "num-tokens": 0,
        "seed": 1,
        "vocabulary": "",
    }


# What a run may let a site import


def site_that_allows(modules: str, **keys: Any) -> SiteConfig:
    return SiteConfig.read({"site": "berlin", "modules": modules, **keys}, "node config")


@pytest.mark.parametrize("modules", ["*", "task_lab", "other, task_lab"])
def test_a_site_imports_what_it_allows(modules: str) -> None:
    one = config(dataset="task_lab:words", model="task_lab:network")
    assert load_site_task(one, site_that_allows(modules)).dataset.name == "words"


@pytest.mark.parametrize("modules", ["", "task", "task_lab.inner", "other"])
@pytest.mark.parametrize("key", ["dataset", "model"])
def test_a_site_imports_nothing_else_for_a_run(modules: str, key: str) -> None:
    named = {"dataset": "task_lab:words", "model": "task_lab:network"}
    with pytest.raises(ConfigError, match="names a module that this site does not allow") as caught:
        load_site_task(config(**{key: named[key]}), site_that_allows(modules))
    assert (caught.value.where, caught.value.got) == (f"run config, {key}", "task_lab")


def test_a_site_chooses_its_own_data_set_freely() -> None:
    own = site_that_allows("", data="task_lab:words")
    assert load_site_task(config(model="mlp"), own).dataset.name == "words"


@pytest.mark.parametrize("model", ["mlp", "resnet8", "torchvision:resnet18", "timm:resnet18"])
def test_models_of_ours_and_of_libraries_are_no_modules(model: str) -> None:
    assert user_module(model) == ""
    assert load_site_task(config(model=model), site_that_allows("")).config.model == model


def test_a_module_inside_an_allowed_package_is_allowed() -> None:
    site = site_that_allows("lab.scans")
    assert site.allows("lab.scans")
    assert site.allows("lab.scans.deep")
    assert not site.allows("lab")
    assert not site.allows("lab.scansion")
