"""The comparisons of splits: alike but for the split, and every split trains to the end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulations.cli import COMPARISONS_DIR
from simulations.compare.arm import Arm
from simulations.compare.comparison_file import Comparison, read_comparison
from simulations.compare.jobs import Job, run_job
from simulations.pages.published import RESULTS
from simulations.results.result_files import read_results
from strategies.storage.run_directory import SUMMARY, read_history

FASHION_MNIST = (
    "sites-2",
    "sites-5",
    "sites-10",
    "sites-20",
    "size-skew",
    "dirichlet-1.0",
    "dirichlet-0.3",
    "dirichlet-0.1",
)
OF_THE_SPLIT = {"num-sites", "partition", "partition-alpha", "partition-size-ratio"}
TINY: dict[str, Any] = {
    "dataset": "digits",
    "max-train-examples": 100,
    "model": "small-cnn",
    "epoch-budget": 2,
    "local-epochs": 1,
    "site-evaluation": True,
}


def comparison_of(split: str) -> tuple[Comparison, list[Arm]]:
    return read_comparison(COMPARISONS_DIR / f"{split}.toml")


@pytest.mark.parametrize("split", FASHION_MNIST)
def test_comparisons_of_fashion_mnist_are_alike_but_for_the_split(split: str) -> None:
    configs = [comparison_of(name)[0].config for name in (FASHION_MNIST[0], split)]
    first, other = ({k: v for k, v in c.items() if k not in OF_THE_SPLIT} for c in configs)
    assert first == other
    assert other["dataset"] == "fashion-mnist"


def test_speakers_differ_from_even_sites_by_the_split_alone() -> None:
    speakers, even = (comparison_of(name)[0].config for name in ("speakers", "spoken-digits"))
    assert speakers == {**even, "num-sites": 6, "partition": "natural-id"}


@pytest.mark.parametrize(
    ("name", "tuned"),
    [
        *((name, "splits/sites-5") for name in (*FASHION_MNIST, "batch-norm") if name != "sites-5"),
        ("speakers", "spoken-digits"),
        ("digits", "digits-arms"),
    ],
)
def test_learning_rates_are_those_that_even_sites_chose(name: str, tuned: str) -> None:
    chosen = read_results(RESULTS / tuned).facts
    assert chosen.tuning
    tuned_configs = {arm.key: arm.config for arm in chosen.arms}
    comparison, arms = comparison_of(name)
    for arm in arms:
        # Annealed co-learning was not tuned there.
        wanted = arm.key.removeprefix("annealed-")
        method = next(key for key in tuned_configs if wanted.startswith(key))
        config = {"lr-max-decay": 1.0, **comparison.config, **arm.values}
        for key in ("lr-max", "lr-max-decay"):
            assert config[key] == tuned_configs[method][key]


def recordings(folder: Path) -> dict[str, Any]:
    """Write recordings of six speakers, noise of two loudnesses; return the keys that read them."""
    soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
    pytest.importorskip("torchaudio", reason="needs the extra 'audio'")
    random = np.random.default_rng(1)
    lines = ["path,label,split,speaker"]
    for speaker in range(6):
        for number in range(8):
            label, split = number % 2, "test" if number >= 6 else "train"
            file = folder / f"{label}-{speaker}-{number}.wav"
            soundfile.write(file, random.uniform(-0.5, 0.5, 1000) * (0.1 + 0.9 * label), 8000)
            lines.append(f"{file},{label},{split},s{speaker}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return {"dataset": f"audio-manifest:{folder / 'list.csv'}", "audio-seconds": 0.1}


@pytest.mark.integration
# One of each kind; of the even ones that with the most sites, of dirichlet the most uneven.
@pytest.mark.parametrize("split", ["sites-20", "size-skew", "dirichlet-0.1", "speakers"])
def test_every_kind_of_split_trains_to_the_end(split: str, tmp_path: Path) -> None:
    comparison, arms = comparison_of(split)
    tiny = {**comparison.config, **TINY}
    if split == "speakers":
        tiny |= {**recordings(tmp_path), "model": comparison.config["model"]}
    outcomes = {}
    for arm in arms:
        folder = tmp_path / arm.key
        more = {"num_rounds": 2} if arm.table.rounds_of else {}
        config = arm.config(tiny, seed=1, output_dir=str(folder), **more)
        outcomes[arm.key] = run_job(Job(arm, 1, config, folder)).outcome
    assert all(outcome.points[-1].epochs == 2 for outcome in outcomes.values())
    num_sites = comparison.config["num-sites"]
    for key in ("co-learning", "fedavg"):
        history = read_history(tmp_path / key)
        assert [line["dropped"] for line in history] == [{}] * 2
        assert [len(line["participants"]) for line in history] == [num_sites] * 2
    summary = json.loads((tmp_path / "co-learning" / SUMMARY).read_text())
    histogram = np.array(summary["partition"]["label-histogram"])
    assert histogram.shape[0] == num_sites
    # Each site has something to hold out: what it says of the model counts.
    assert all(line["start_evaluation"] for line in history)
    if split == "dirichlet-0.1":
        assert ((histogram == 0).sum(axis=1) >= 5).any(), "a site without half of the classes"
    if split == "size-skew":
        # 100 images in shares of 1, 1.78, 3.16, 5.62 and 10, of 21.6 in all; the bounds between
        # the sites are at 4.6, 12.9, 27.5 and 53.6.
        assert histogram.sum(axis=1).tolist() == [5, 8, 15, 26, 46]
