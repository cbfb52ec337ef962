"""Real data from disk: CIFAR-10 as image folders, Fashion-MNIST as Debian packages it."""

import csv
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mdc_flower.data import load_dataset
from mdc_flower.data.readers.builtin import DEBIAN_FASHION_MNIST
from tests.integration.test_engines import mdc

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CIFAR10 = Path(os.environ.get("MDC_TEST_DATA", "/nowhere"), "cifar10-jpeg.tar.xz")


@pytest.fixture(scope="module")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack a part of CIFAR-10's image folders: 30 training and 10 test images per class."""
    if not CIFAR10.is_file():
        pytest.skip("MDC_TEST_DATA does not name a folder with cifar10-jpeg.tar.xz")
    folder = tmp_path_factory.mktemp("data") / "cifar10"
    wanted, taken = {"train": 30, "test": 10}, dict[str, int]()
    with tarfile.open(CIFAR10) as archive:
        for member in archive:
            name = str(Path(member.name).parent)
            split = name.split("/")[0]
            if member.isfile() and taken.get(name, 0) < wanted.get(split, 0):
                taken[name] = taken.get(name, 0) + 1
                archive.extract(member, folder, filter="data")
    assert len(taken) == 20, sorted(taken)
    return folder


def test_compare_on_image_folders_end_to_end(cifar10_folder: Path, tmp_path: Path) -> None:
    text = (ROOT / "simulations" / "comparisons" / "cifar10.toml").read_text()
    fewer = {
        "lr-max = [0.025, 0.05, 0.1, 0.2]": "lr-max = [0.05, 0.1]",
        "lr-max = [0.05, 0.1, 0.2, 0.4]": "lr-max = [0.1, 0.2]",
        "ile-epsilon = [0.05, 0.1]\n": "",
    }  # two candidates for each arm, not four
    for grid, shorter in fewer.items():
        assert grid in text
        text = text.replace(grid, shorter)
    comparison = tmp_path / "cifar10.toml"
    comparison.write_text(text)
    done = mdc(
        "compare", str(comparison), "--set", f"data-root={cifar10_folder.parent}", "--seeds", "1",
        "--set", "epoch-budget=2", "--output", str(tmp_path / "results"),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "results" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == [
        "centralized",
        "centralized, equal steps",
        "centralized, equal time",
        "co-learning",
        "FedAvg",
        "one site alone",
    ]
    exchanges = {row["arm"]: float(row["exchanges"]) for row in rows}
    assert exchanges["centralized"] == exchanges["one site alone"] == 0
    # Two epochs in one or two rounds, plus the recalibration
    assert exchanges["co-learning"] == exchanges["FedAvg"]
    assert exchanges["co-learning"] in (2, 3)
    assert (tmp_path / "results" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_comparison_for_a_gpu_runs_on_a_cpu_with_a_tiny_budget(
    cifar10_folder: Path, tmp_path: Path
) -> None:
    text = (ROOT / "simulations" / "comparisons" / "cifar10-gpu.toml").read_text()
    for grid in ("lr-max = [0.05, 0.1, 0.2]", "lr-max = [0.1, 0.2, 0.4]"):
        assert grid in text
        text = text.replace(grid, "lr-max = [0.05]")  # one candidate for each arm, not three
    tiny = "max-train-examples = 60\nepoch-budget = 2"
    text = text.replace("max-train-examples = 20000\nepoch-budget = 10", tiny)
    assert tiny in text
    comparison = tmp_path / "cifar10-gpu.toml"
    comparison.write_text(text)
    named = ["centralized", "annealed-co-learning-more-passes", "co-learning", "fedavg"]
    arms = [text for arm in named for text in ("--arm", arm)]
    done = mdc(
        "compare", str(comparison), *arms, "--set", f"data-root={cifar10_folder.parent}",
        "--seeds", "1",
        "--set", "epoch-budget=2", "--set", "num-sites=2", "--set", "local-epochs=1",
        "--set", "max-train-examples=60",
        "--set", "max-test-examples=10", "--set", "image-size=16", "--set", "batch-size=8",
        "--output", str(tmp_path / "results"),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "results" / "table.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(named)
    # 54 training images, 27 at each site, in four batches a pass: two passes, and four.
    steps = {name: float(row["steps"]) for name, row in rows.items()}
    assert steps["annealed co-learning, steps of centralized"] > 1.5 * steps["FedAvg"]


def test_fashion_mnist_is_found_where_debian_puts_it() -> None:
    if not DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    dataset = load_dataset("fashion-mnist")
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert dataset.input_shape == (1, 28, 28)
    assert dataset.class_names[9] == "Ankle boot"
    # The usual statistics of its training images, which normalization uses.
    pixels = np.asarray(dataset.train.inputs, dtype=np.float64) / 255
    assert abs(float(pixels.mean()) - dataset.mean[0]) < 1e-3
    assert abs(float(pixels.std()) - dataset.std[0]) < 1e-3
