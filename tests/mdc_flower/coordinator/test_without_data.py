"""A coordinator without data, and real sites with their own, in this process."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from flwr.app import Context, RecordDict
from rich.console import Console

from mdc_flower import client_app, server_app
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.console.live_view import RunState
from mdc_flower.coordinator.admission import REGISTER
from mdc_flower.data.contract import Contract
from mdc_flower.engines.in_process import InProcessGrid, run_in_process
from mdc_flower.jobs.model_files import evaluate_run
from mdc_flower.reports import run_figures
from mdc_flower.reports.run_figures import draw_run
from mdc_flower.reports.series import site_scores
from strategies.common.errors import ConfigError, DataError, QuorumError, SiteInputError
from strategies.exchange.metrics import VALIDATION_METRICS
from strategies.storage.model_files import read_model
from strategies.storage.run_directory import (
    BEST_MODEL,
    EVENTS,
    GLOBAL_MODEL,
    SUMMARY,
    read_history,
)

pytestmark = pytest.mark.usefixtures("identity")

Register = Callable[..., Path]

LAB = """
import numpy as np
from mdc_flower.data import DataSet, Examples

def corners(seed, name, classes):
    chance = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    images = chance.integers(0, 120, (90, 1, 8, 8), np.uint8)
    for row, label in enumerate(labels):
        images[row, 0, 2 * label : 2 * label + 2] += 100
    examples = Examples(images, labels)
    return DataSet(name, examples, examples, classes, (0.1 * seed,), (0.5,))

def north():
    return corners(1, "north's own", ["a", "b", "c"])

def south():
    return corners(2, "south's own", ["a", "b", "c"])

def another():
    return corners(3, "another", ["a", "c", "d"])
"""
CONTRACT = Contract(
    name="corners", type="uint8", shape=(1, 8, 8), classes=("a", "b", "c"), mean=(0.4,), std=(0.2,)
)
NODES = {
    "north": 8_243_971_190_237_113_041,
    "south": 1_557_302_844_917_720_986,
    "west": 6_020_113_377_615_904_462,
}


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the sites' own module where Python finds it, and the contract where they look for it."""
    (tmp_path / "corner_lab.py").write_text(LAB)
    (tmp_path / "contract.toml").write_text(
        tomli_w.dumps({"contract": CONTRACT.model_dump(by_alias=True)})
    )
    monkeypatch.syspath_prepend(tmp_path)


def config(tmp_path: Path, **keys: Any) -> RunConfig:
    values: dict[str, Any] = {
        "dataset": CONTRACT.to_spec(),
        "model": "mlp",
        "num-sites": 2,
        "num-rounds": 4,
        "epochs": "fixed",
        "local-epochs": 2,
        "lr-max": 0.02,
        "validation-fraction": 0.3,
        "site-evaluation": True,
        "wait-for-sites-s": 1.0,
        "output-dir": str(tmp_path / "run"),
    }
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def site(tmp_path: Path, name: str, **keys: Any) -> dict[str, Any]:
    """Return the node config of a site that has its data under its own name."""
    contract = str(tmp_path / "contract.toml")
    return {"site": name, "data": f"corner_lab:{name}", "contract": contract, **keys}


def run(config: RunConfig, *sites: dict[str, Any]) -> Path:
    """Run to the end; return the run directory."""

    def context(node: int, node_config: dict[str, Any]) -> Context:
        run_config = dict(config.to_flower())
        return Context(22, node, dict(node_config), RecordDict(), run_config)

    contexts = {NODES[values["site"]]: context(NODES[values["site"]], values) for values in sites}
    server_app.app(InProcessGrid(client_app.app, contexts), context(1, {}))
    return Path(config.output_dir)


def both(tmp_path: Path, **keys: Any) -> list[dict[str, Any]]:
    return [site(tmp_path, name, **keys) for name in ("north", "south")]


def summary_of(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text())
    return summary


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / EVENTS).read_text().splitlines()]


def test_a_coordinator_without_data_leaves_a_whole_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_figures, "draw_run", draw_run)  # which other tests do without
    run_dir = run(config(tmp_path), *both(tmp_path))
    summary, history = summary_of(run_dir), read_history(run_dir)
    assert (summary["status"], summary["sites"]) == ("finished", ["north", "south"])
    assert "partition" not in summary
    assert [line["evaluation"] for line in history] == [{}] * 4
    assert [set(line["start_evaluation"]) for line in history] == [VALIDATION_METRICS] * 4
    assert [set(line["site_evaluation"]) for line in history] == [
        set(),
        set(),
        set(),
        VALIDATION_METRICS,
    ]
    # 27 of the 90 examples of each site are held out.
    assert history[-1]["site_evaluation"]["num-validation-examples"] == 54
    assert summary["final"] == history[-1]["site_evaluation"]
    assert summary["final"]["validation-accuracy"] > 0.6
    _, metadata = read_model(run_dir / GLOBAL_MODEL)
    assert (metadata["dataset"], metadata["mean"]) == ("corners", [0.4])
    assert (run_dir / "report.png").read_bytes().startswith(b"\x89PNG")


def test_its_best_model_is_the_one_that_the_sites_score_highest(tmp_path: Path) -> None:
    keep = config(tmp_path, keep_checkpoints=9)
    run_dir = run(keep, *both(tmp_path))
    # Two local epochs a round, so the model after round i is at 2 i; the initial one is none.
    scores = site_scores(read_history(run_dir))
    assert list(scores) == [0, 2, 4, 6, 8]
    best = max(range(1, 5), key=lambda number: scores[2 * number])
    (kept,) = (run_dir / "checkpoints").glob(f"{best:06d}.*.safetensors")
    assert (run_dir / BEST_MODEL).read_bytes() == kept.read_bytes()


def test_its_run_goes_on_to_the_same_model_and_the_same_best_one(tmp_path: Path) -> None:
    whole = run(config(tmp_path, output_dir=str(tmp_path / "whole")), *both(tmp_path))
    parts = run(config(tmp_path, num_rounds=2), *both(tmp_path))
    run(config(tmp_path, resume=True), *both(tmp_path))
    for name in (GLOBAL_MODEL, BEST_MODEL):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert site_scores(read_history(parts)) == site_scores(read_history(whole))


def test_its_rounds_are_shown_with_what_the_sites_say(tmp_path: Path) -> None:
    run_dir = run(config(tmp_path, num_rounds=2), *both(tmp_path))
    first, second = read_history(run_dir)
    state = RunState()
    lines = [line for event in events(run_dir) if (line := state.apply(event))]
    start, middle, end = (
        metrics["validation-accuracy"]
        for metrics in (
            first["start_evaluation"],
            second["start_evaluation"],
            second["site_evaluation"],
        )
    )
    assert f", accuracy: {start:.4f} at the sites for the initial model, relative" in lines[1]
    assert (
        f", accuracy: {middle:.4f} at the sites for round 1's model, "
        f"{end:.4f} at the sites for round 2's model, " in lines[2]
    )
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(state.table())
    assert f"{end:.4f} at the sites for round 2's model" in console.export_text()


@pytest.mark.parametrize("simulated", [True, False])
def test_the_bits_of_the_model_are_the_same_with_site_evaluation_and_without(
    tmp_path: Path, simulated: bool
) -> None:
    digests = []
    for site_evaluation in (True, False):
        keys: dict[str, Any] = {
            "site_evaluation": site_evaluation,
            "output_dir": str(tmp_path / f"run-{site_evaluation}"),
            "augment": "crop",
        }
        if simulated:
            one = config(tmp_path, dataset="digits", max_train_examples=120, **keys)
            run_in_process(one, 2)
        else:
            run(config(tmp_path, **keys), *both(tmp_path))
        run_dir = Path(keys["output_dir"])
        digests.append((run_dir / GLOBAL_MODEL).read_bytes())
        assert bool(read_history(run_dir)[0]["start_evaluation"]) is site_evaluation
    assert digests[0] == digests[1]


def test_where_the_sites_keep_their_metrics_the_run_is_the_same_but_not_chosen_from(
    tmp_path: Path,
) -> None:
    open_run = run(config(tmp_path, output_dir=str(tmp_path / "open")), *both(tmp_path))
    run_dir = run(config(tmp_path), *both(tmp_path, metrics="num-examples"))
    assert (run_dir / GLOBAL_MODEL).read_bytes() == (open_run / GLOBAL_MODEL).read_bytes()
    for record in read_history(run_dir):
        assert record["participants"] == {
            "north": {"num-examples": 63},
            "south": {"num-examples": 63},
        }
        assert record["start_evaluation"] == record["site_evaluation"] == {}
    assert not (run_dir / BEST_MODEL).exists()
    assert (run_dir / "report.png").is_file()
    assert summary_of(run_dir)["final"] == {}
    state = RunState()
    lines = [line for event in events(run_dir) if (line := state.apply(event))]
    assert ", not evaluated, relative change" in lines[-1]


def test_a_site_with_another_class_is_dropped_with_the_reason(tmp_path: Path) -> None:
    odd = site(tmp_path, "south", data="corner_lab:another")
    run_dir = run(config(tmp_path, min_sites=1, num_rounds=1), site(tmp_path, "north"), odd)
    (line,) = read_history(run_dir)
    assert list(line["participants"]) == ["north"]
    assert "a class that is not in the contract" in line["dropped"]["south"]


def test_an_error_of_a_site_brings_no_path_into_the_coordinators_files(tmp_path: Path) -> None:
    odd = site(tmp_path, "south", data=f"image-folder:{tmp_path}/Jane Doe's scans")
    run_dir = run(config(tmp_path, min_sites=1, num_rounds=1), site(tmp_path, "north"), odd)
    (line,) = read_history(run_dir)
    assert "DataError: the folder is missing" in line["dropped"]["south"]
    for name in ("history.jsonl", EVENTS):
        assert "Jane" not in (run_dir / name).read_text()


def test_an_update_beyond_the_bound_is_dropped(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match="max-relative-update is 1e-06"):
        run(config(tmp_path, max_relative_update=1e-6, max_round_retries=0), *both(tmp_path))


# The register of sites


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Return a function that writes the coordinator's register."""
    path = tmp_path / "sites.json"
    monkeypatch.setenv(REGISTER, str(path))

    def write(**nodes: int) -> Path:
        path.write_text(json.dumps({name: str(node) for name, node in nodes.items()}))
        return path

    return write


def test_registered_sites_take_part(tmp_path: Path, register: Register) -> None:
    register(north=NODES["north"], south=NODES["south"])
    run_dir = run(config(tmp_path, num_rounds=1), *both(tmp_path))
    assert summary_of(run_dir)["sites"] == ["north", "south"]


def test_a_site_under_anothers_name_takes_no_part(tmp_path: Path, register: Register) -> None:
    register(north=NODES["north"], west=NODES["south"])
    with pytest.raises(QuorumError, match="only 1 of 2 sites") as caught:
        run(config(tmp_path), *both(tmp_path))
    assert "site 'south': it claims this name, but its key is registered for 'west'" in str(
        caught.value
    )


def test_a_register_that_cannot_be_read_ends_the_run_before_sites_are_waited_for(
    tmp_path: Path, register: Register
) -> None:
    with pytest.raises(ConfigError, match="the register of sites cannot be read"):
        run(config(tmp_path), *both(tmp_path))
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["exit-status"], summary["restart"]) == ("failed", 2, False)
    assert "waiting-for-sites" not in (tmp_path / "run" / EVENTS).read_text()


def test_a_register_that_cannot_be_read_later_costs_the_run_no_site_it_knows(
    tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = register(north=NODES["north"], south=NODES["south"])
    monkeypatch.setattr(
        "mdc_flower.site.answers.reach", lambda point, **where: path.unlink(missing_ok=True)
    )
    run_dir = run(config(tmp_path), *both(tmp_path))
    assert not path.exists()
    assert [len(line["participants"]) for line in read_history(run_dir)] == [2] * 4


# What a data set without examples cannot do


def test_the_model_of_such_a_run_is_evaluated_on_a_data_set_that_is_named(tmp_path: Path) -> None:
    run_dir = run(config(tmp_path, num_rounds=1), *both(tmp_path))
    with pytest.raises(DataError, match="the data set has no test examples") as caught:
        evaluate_run(run_dir, "", "", best=False)
    assert "--data" in caught.value.hint
    found = evaluate_run(run_dir, "corner_lab:north", "", best=True)
    assert (found["num-examples"], found["dataset"]) == (90, "north's own")


def test_simulated_sites_have_no_examples_of_it(tmp_path: Path) -> None:
    told = config(tmp_path, max_round_retries=0)
    with pytest.raises(SiteInputError, match="this site has no data set") as caught:
        run_in_process(told, 2)
    assert "the config at site-0, site-1 cannot be used" in caught.value.what
    assert "deadline" not in str(caught.value)  # they answered at once
    summary = json.loads((Path(told.output_dir) / "summary.json").read_text())
    assert (summary["status"], summary["exit-status"], summary["restart"]) == ("failed", 2, False)
