"""Three sites merge token counts into one vocabulary, and get the model of the pooled texts."""

import os
import tomllib
from pathlib import Path

import pytest

import mdc_flower.cli.federation  # noqa: F401  # adds its commands to `mdc`
from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.data.contract import Contract
from mdc_flower.jobs.task import load_site_task
from strategies.storage.run_directory import read_history
from tests.integration.conftest import summary_of
from tests.mdc_flower.commands import mdc, model_sha256, process_state

pytestmark = pytest.mark.integration

REVIEWS = Path(os.environ.get("MDC_TEST_DATA", "/nowhere")) / "sst2"
SITES = ("berlin", "lisbon", "oslo")
LENGTH = 32
SETTINGS = (
    "model=text-cnn", f"text-length={LENGTH}", "vocabulary-size=2000", "epochs=fixed",
    "local-epochs=1", "epoch-budget=2", "optimizer=adamw", "lr-max=0.003",
)  # fmt: skip

__all__ = ["process_state"]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Return one text folder per site, with 200 sentences each, and one with all sentences."""
    if not REVIEWS.is_dir():
        pytest.skip("MDC_TEST_DATA does not name a folder with sst2")
    train, test = ((REVIEWS / f"{s}.txt").read_text("utf-8").split("\n") for s in ("train", "test"))
    shards = {site: train[200 * at : 200 * (at + 1)] for at, site in enumerate(SITES)}
    found = {}
    for name, lines in {**shards, "pooled": train[:600]}.items():
        found[name] = tmp_path / name
        found[name].mkdir()
        (found[name] / "train.txt").write_text("\n".join(lines), "utf-8")
        (found[name] / "test.txt").write_text("\n".join(test[:100]), "utf-8")
    return found


def succeed(*arguments: str | Path) -> str:
    """Run a command that must succeed; return its output."""
    result = mdc(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def run(data: Path, output: str, *settings: str) -> str:
    """Train three simulated sites for two rounds; return the SHA-256 of the model file."""
    options = [part for one in (*SETTINGS, *settings) for part in ("--set", one)]
    options += ["--set", f"dataset=text-folder:{data}", "--output", output]
    succeed("run", "--engine", "in-process", "--sites", "3", *options)
    assert summary_of(Path(output))["status"] == "finished"
    assert [sorted(line["dropped"]) for line in read_history(Path(output))] == [[], []]
    return model_sha256(Path(output))


@pytest.mark.usefixtures("process_state")
def test_merged_counts_give_the_model_of_the_pooled_texts(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for site in SITES:
        data = f"text-folder:{folders[site]}"
        succeed("site", "count-tokens", data, "--min-count", "1", "--output", f"{site}.csv")
    counts = [f"{site}.csv" for site in SITES]
    merge = ["coordinator", "merge-counts", *counts, "--size", "2000"]
    keys = tomllib.loads(succeed(*merge, "--output", "vocabulary.txt"))
    vocabulary = tmp_path / "vocabulary.txt"

    merged = run(folders["pooled"], "merged", f"vocabulary={vocabulary}")
    assert merged == run(folders["pooled"], "pooled"), (
        "the run makes a different vocabulary from the same texts"
    )
    other = tmp_path / "other.txt"
    other.write_text("".join(sorted(vocabulary.read_text("utf-8").splitlines(keepends=True))))
    assert merged != run(folders["pooled"], "other", f"vocabulary={other}")

    # With the printed keys every site is accepted, and all sites have the same model.
    contract = Contract.read(
        {"name": "reviews", "type": "int64", "shape": (LENGTH,), "classes": ("0", "1"), **keys},
        "here",
    )
    config = read_run_config({"dataset": contract.to_spec(), "model": "text-cnn"})
    for name in SITES:
        data = f"text-folder:{folders[name]}"
        own = read_site_config({"site": name, "data": data, "vocabulary": str(vocabulary)})
        task = load_site_task(config, own)
        assert task.dataset.vocabulary == keys["vocabulary"]
        assert len(task.new_model().get_parameter("embedding.weight")) == keys["num-tokens"]
