"""Whole runs on real spoken digits and film reviews, in this process, a few seconds each."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import read_run_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.model_files import evaluate_run
from simulations.datasets.spoken_digits import write_manifest
from strategies.storage.run_directory import SUMMARY, read_history

pytestmark = pytest.mark.integration

DATA = Path(os.environ.get("MDC_TEST_DATA", "/nowhere"))
DIGITS, REVIEWS = DATA / "free-spoken-digits.tar.xz", DATA / "sst2"
SPEAKERS = ("jackson", "theo")


def run(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    """Run two sites for two rounds; check the summary against the model file and return it."""
    values = {
        "num-rounds": 2,
        "epochs": "fixed",
        "epoch-budget": 0,
        "batch-size": 16,
        "precision": "none",
        "output-dir": str(tmp_path / "run"),
        **{key.replace("_", "-"): value for key, value in keys.items()},
    }
    run_in_process(read_run_config(values), 2)
    run_dir = tmp_path / "run"
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text())
    assert summary["status"] == "finished"
    assert all(line["dropped"] == {} for line in read_history(run_dir))
    rebuilt = evaluate_run(run_dir, "", "", best=False)
    assert rebuilt["accuracy"] == summary["final"]["test-accuracy"]
    return summary


@pytest.fixture(scope="module")
def spoken_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """List recordings 0 to 24 of two speakers: 400 for training, 100 for the test."""
    pytest.importorskip("soundfile", reason="needs the extra 'audio'")
    pytest.importorskip("torchaudio", reason="needs the extra 'audio'")
    if not DIGITS.is_file():
        pytest.skip("MDC_TEST_DATA does not name a folder with free-spoken-digits.tar.xz")
    folder = tmp_path_factory.mktemp("digits")
    with tarfile.open(DIGITS) as archive:
        for member in archive:
            _, _, rest = Path(member.name).stem.partition("_")
            speaker, _, index = rest.partition("_")
            if speaker in SPEAKERS and int(index) < 25:
                archive.extract(member, folder, filter="data")
    manifest = folder / "list.csv"
    assert write_manifest(folder / "recordings", manifest) == 500
    return manifest


@pytest.mark.parametrize("model", ["audio-cnn", "audio-crnn"])
def test_sites_with_one_speaker_each_learn_spoken_digits(
    spoken_digits: Path, tmp_path: Path, model: str
) -> None:
    summary = run(
        tmp_path,
        dataset=f"audio-manifest:{spoken_digits}",
        audio_sample_rate=8000,
        audio_mels=32,
        audio_seconds=0.7,
        model=model,
        partition="natural-id",
        local_epochs=4,
        optimizer="adamw",
        lr_max=0.005,
    )
    assert summary["partition"]["label-histogram"] == [[20] * 10] * 2
    assert summary["final"]["test-accuracy"] > 0.5  # chance is 0.1


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text folder with SST-2's first 3,000 training sentences and its test sentences."""
    if not REVIEWS.is_dir():
        pytest.skip("MDC_TEST_DATA does not name a folder with sst2")
    folder = tmp_path_factory.mktemp("reviews")
    for split, count in (("train", 3000), ("test", 1821)):
        lines = (REVIEWS / f"{split}.txt").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{split}.txt").write_text("".join(lines[:count]), "utf-8")
    return folder


@pytest.mark.parametrize("model", ["text-cnn", "text-gru"])
def test_two_sites_learn_from_film_reviews(reviews: Path, tmp_path: Path, model: str) -> None:
    summary = run(
        tmp_path,
        dataset=f"text-folder:{reviews}",
        text_length=32,
        model=model,
        max_test_examples=800,
        local_epochs=3,
        batch_size=32,
        optimizer="adamw",
        lr_max=0.003,
    )
    assert summary["final"]["test-accuracy"] > 0.6  # chance is 0.5
