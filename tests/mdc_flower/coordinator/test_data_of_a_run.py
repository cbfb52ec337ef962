"""The data of a run: the same in every process and after a resume, and as the contract says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Context, RecordDict
from PIL import Image

from mdc_flower import client_app, server_app
from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.coordinator.same_data import check_same_data
from mdc_flower.data.contract import Contract
from mdc_flower.data.registry import load_dataset
from mdc_flower.engines.in_process import InProcessGrid
from mdc_flower.jobs.task import load_site_task, load_task
from mdc_flower.site.card import site_card
from strategies.common.errors import DataError, QuorumError
from strategies.exchange.membership import Membership
from strategies.exchange.messages import SiteCard
from strategies.storage.run_directory import EVENTS
from tests.mdc_flower.commands import mdc

pytestmark = pytest.mark.usefixtures("identity")


def folder(root: Path, classes: dict[str, int], test: bool = True) -> str:
    """Write 12 images per class, each class around a grey value of its own."""
    chance = np.random.default_rng(len(classes))
    for split in ("train", "test") if test else ("train",):
        for name, grey in classes.items():
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                noise = chance.integers(0, 20, (8, 8, 3))
                pixels = (grey + noise).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return f"image-folder:{root}"


def forget() -> None:
    """Do as a new process would: read all data again."""
    for cached in (load_task, load_site_task, load_dataset):
        cached.cache_clear()


def test_a_run_does_not_go_on_with_other_labels(tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings = {
        "dataset": folder(data, {"cat": 20, "dog": 200}), "model": "mlp", "epochs": "fixed",
        "local-epochs": 1, "epoch-budget": 1,
    }  # fmt: skip
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    first = mdc("run", "--engine", "in-process", "--sites", "2", *given, "--output", str(run))
    assert first.exit_code == 0, first.output
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "x")
        (data / split / "dog").rename(data / split / "cat")
        (data / split / "x").rename(data / split / "dog")
    forget()
    more = mdc("run", "--engine", "in-process", "--resume", str(run), "--set", "epoch-budget=2")
    assert more.exit_code == 2
    assert "dataset: the data, or their partition into sites, differ" in more.output


UNSEEDED = """
import numpy as np
from mdc_flower.data import DataSet, Examples

def noise():
    rows = np.random.default_rng().permutation(60)
    all_ = Examples(np.arange(60, dtype=np.float32)[:, None], np.arange(60) % 2)
    return DataSet("noise", all_.take(rows[:40]), all_.take(rows[40:]), ["a", "b"])
"""


def test_simulated_sites_with_another_split_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noise_lab.py").write_text(UNSEEDED)
    monkeypatch.syspath_prepend(tmp_path)
    config = read_run_config({"dataset": "noise_lab:noise", "model": "mlp"})
    own = load_task(config).data_sha256
    site = read_site_config({"partition-id": 0, "num-partitions": 2})
    same = site_card(config, site)
    forget()
    other = replace(site_card(config, site), name="site-1")
    assert own == same.data_sha256 != other.data_sha256
    check_same_data(_members(same), own)
    with pytest.raises(DataError, match="see other data than the coordinator") as caught:
        check_same_data(_members(same, other), own)
    assert (caught.value.got, caught.value.exit_code) == ("site-1", 2)
    assert "random_state" in caught.value.hint


def _members(*cards: SiteCard) -> Membership:
    return Membership(cards=dict(enumerate(cards)))


def context(node: int, node_config: dict[str, Any], run_config: dict[str, Any]) -> Context:
    return Context(22, node, dict(node_config), RecordDict(), dict(run_config))


def run(config: dict[str, Any], *sites: dict[str, Any]) -> Path:
    """Run to the end with real sites in this process; return the run directory."""
    values = dict(read_run_config(config).to_flower())
    contexts = {node: context(node, site, values) for node, site in enumerate(sites, 100)}
    server_app.app(InProcessGrid(client_app.app, contexts), context(1, {}, values))
    return Path(config["output-dir"])


SMALL = {
    "model": "mlp", "epochs": "fixed", "local-epochs": 1, "num-rounds": 1, "num-sites": 2,
    "wait-for-sites-s": 1.0,
}  # fmt: skip


def test_real_sites_of_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    specs = [
        folder(tmp_path / "one", {"cat": 20, "dog": 200}),
        folder(tmp_path / "two", {"ape": 20, "cat": 200}),
    ]
    sites = [{"site": f"s{number}", "data": spec} for number, spec in enumerate(specs)]
    config = {**SMALL, "dataset": specs[0], "output-dir": str(tmp_path / "run")}
    with pytest.raises(QuorumError, match="its data differ from the coordinator's in: classes"):
        run(config, *sites)


def test_sites_under_a_contract_may_lack_classes_and_a_test_split(tmp_path: Path) -> None:
    classes = ("normal", "benign", "malignant")
    contract = Contract(
        name="scans", type="uint8", shape=(3, 8, 8), classes=classes, mean=(0.5,), std=(0.3,)
    )
    path = tmp_path / "contract.toml"
    path.write_text(tomli_w.dumps({"contract": contract.model_dump(by_alias=True)}))
    grey = dict(zip(classes, (10, 120, 220), strict=True))
    all_here = folder(tmp_path / "all", grey)
    some = folder(tmp_path / "some", {k: grey[k] for k in ("normal", "malignant")}, test=False)
    sites = [
        {"site": f"s{number}", "data": spec, "contract": str(path)}
        for number, spec in enumerate((all_here, some))
    ]
    config = {**SMALL, "dataset": all_here, "contract": contract.to_spec(), "min-sites": 2}
    config |= {"output-dir": str(tmp_path / "run"), "local-epochs": 40, "batch-size": 4}
    done = run(config, *sites)
    summary = json.loads((done / "summary.json").read_text())
    assert summary["class-names"] == list(classes)
    assert summary["sites"] == ["s0", "s1"]
    # Classes in the order of their names at one site, and of the contract at the other, would
    # teach two meanings for a label.
    assert summary["final"]["test-accuracy"] > 0.9, (done / EVENTS).read_text()
