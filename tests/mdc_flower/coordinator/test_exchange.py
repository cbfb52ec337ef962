"""Runs that exchange a part of the model: what travels, what is kept, and who is refused."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from mdc_flower import client_app, server_app
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.engines.in_process import InProcessGrid, run_in_process
from mdc_flower.jobs.model_files import evaluate_run, load_model
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.training.arrays import model_arrays
from strategies.common.errors import ModelError, SiteInputError
from strategies.exchange.messages import arrays_to_record
from strategies.storage.model_files import StoredArrays, read_model
from strategies.storage.run_directory import (
    CHECKPOINTS,
    GLOBAL_MODEL,
    HISTORY,
    read_events,
    read_history,
    read_summary,
)
from tests import tiny, tiny_jobs

pytestmark = pytest.mark.usefixtures("identity")

HEAD = ["2.weight", "2.bias"]


def config(folder: Path, **keys: Any) -> RunConfig:
    values = {
        **tiny_jobs.KEYS,
        "job": "tests.tiny_jobs:adapted",
        "exchange": "trainable",
        "site-evaluation": True,
        "output-dir": str(folder),
    }
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def lead(config: RunConfig, jobs: dict[str, str]) -> Path:
    """Lead a run with a real site for each of these jobs; return the run directory."""

    def context(node: int, node_config: dict[str, Any]) -> Context:
        return Context(22, node, node_config, RecordDict(), dict(config.to_flower()))

    named = {name: job if ":" in job else f"tests.tiny_jobs:{job}" for name, job in jobs.items()}
    contexts = {
        100 + number: context(100 + number, {"site": name, "job": job})
        for number, (name, job) in enumerate(named.items())
    }
    server_app.app(InProcessGrid(client_app.app, contexts), context(1, {}))
    return Path(config.output_dir)


def test_only_a_part_travels_and_the_whole_model_is_the_same_to_the_bit(tmp_path: Path) -> None:
    run_in_process(config(tmp_path / "part", epoch_budget=3), 2)
    run_in_process(config(tmp_path / "all", epoch_budget=3, exchange="all"), 2)
    part, about = read_model(tmp_path / "part" / GLOBAL_MODEL)
    whole, plain = read_model(tmp_path / "all" / GLOBAL_MODEL)
    assert sorted(part) == sorted(HEAD)
    task = load_run_task(config(tmp_path / "part"))
    initial = model_arrays(task.new_model())
    assert sorted(whole) == sorted(initial)
    for name, array in whole.items():
        assert array.tobytes() == (part if name in HEAD else initial)[name].tobytes()
    assert (about["exchange"], len(about["base"])) == ("trainable", 64)
    assert "exchange" not in plain

    per_model = arrays_to_record(part).count_bytes()
    summary = read_summary(tmp_path / "part")
    for line in read_history(tmp_path / "part"):
        last = 2 * per_model * (line["round"] == 3)  # the sites evaluate the final model
        assert line["sent_bytes"] == 2 * per_model + last
        assert line["received_bytes"] == 2 * per_model
    assert summary["exchanged"] == {"arrays": 2, "bytes": 40, "base": about["base"]}
    (started,) = read_events(tmp_path / "part", "run-started")
    assert started["exchanged"] == summary["exchanged"]
    for one, other in zip(
        read_history(tmp_path / "part"), read_history(tmp_path / "all"), strict=True
    ):
        for key in ("evaluation", "start_evaluation", "site_evaluation", "training"):
            assert one[key] == other[key]


def test_nothing_that_the_coordinator_stores_has_other_arrays(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"outer-optimizer": "momentum", "keep-updates": True, "average-last": 2}
    run_in_process(config(tmp_path / "run", **keys), 2)
    stored = {path: list(StoredArrays(path)) for path in tmp_path.rglob("*.safetensors")}
    assert {path.parent.name for path in stored} >= {CHECKPOINTS, "round-00002", "run"}
    for path, names in stored.items():
        kept = {name.removeprefix("momentum/") for name in names if name != "steps"}
        assert kept == set(HEAD), path


def test_a_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    run_in_process(config(tmp_path / "whole", epoch_budget=4), 2)
    run_in_process(config(tmp_path / "cut", epoch_budget=2), 2)
    run_in_process(config(tmp_path / "cut", epoch_budget=4, resume=True), 2)
    whole, cut = ((tmp_path / name / GLOBAL_MODEL).read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_a_run_is_not_resumed_with_another_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_process(config(tmp_path / "run"), 2)
    before = read_summary(tmp_path / "run")
    monkeypatch.setattr(tiny_jobs, "BASE", [1.0])
    with pytest.raises(ModelError, match="not the same here") as caught:
        run_in_process(config(tmp_path / "run", epoch_budget=4, resume=True), 2)
    assert "the resumed run" in str(caught.value)
    assert before["exchanged"]["base"][:16] in str(caught.value)
    assert read_summary(tmp_path / "run") == before


def test_a_run_whose_sites_all_have_another_base_ends_with_what_to_do(tmp_path: Path) -> None:
    jobs = {"north": "with_another_base", "south": "with_another_base"}
    with pytest.raises(SiteInputError, match="from the same file of weights") as caught:
        lead(config(tmp_path / "run", num_sites=2), jobs)
    assert caught.value.exit_code == 2


def test_a_frozen_layer_that_drifts_at_the_sites_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiteInputError, match=r"'0\.running_mean', the first of 3") as caught:
        lead(
            config(tmp_path / "run", job="tests.tiny_jobs:drifting", num_sites=2),
            {"north": "drifting", "south": "drifting"},
        )
    assert "super().train(False)" in str(caught.value)


def test_a_frozen_layer_that_drifts_is_named_before_the_first_round(tmp_path: Path) -> None:
    keys = {
        "job": "classification",
        "dataset": "tests.tiny:vectors",
        "model": f"{__name__}:frozen_norm",
    }
    with pytest.raises(ModelError, match=r"'0\.running_mean'"):
        run_in_process(config(tmp_path / "run", **keys), 2)
    assert read_summary(tmp_path / "run")["exit-status"] == 2
    assert not (tmp_path / "run" / HISTORY).exists()


def frozen_norm(input_shape: tuple[int, ...], num_classes: int) -> Any:
    model: Any = tiny.normalized(input_shape, num_classes)
    model[0].requires_grad_(False)
    return model


def test_a_model_file_with_a_part_is_put_into_the_same_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**tiny.KEYS, "job": "classification", "model": "tests.tiny:adapted"}
    run_in_process(config(tmp_path / "run", exchange="1.*", **keys), 2)
    file = tmp_path / "run" / GLOBAL_MODEL
    model, _ = load_model(file)
    arrays, _ = read_model(file)
    assert sorted(arrays) == ["1.bias", "1.weight"]
    assert all(model_arrays(model)[name].tobytes() == a.tobytes() for name, a in arrays.items())
    found = evaluate_run(tmp_path / "run", "", "", best=False)
    last = read_history(tmp_path / "run")[-1]
    assert found["accuracy"] == last["evaluation"]["test-accuracy"]

    def another(input_shape: tuple[int, ...], num_classes: int) -> Any:
        built: Any = frozen(input_shape, num_classes)
        built[0].weight.zero_()
        return built

    frozen = tiny.adapted
    monkeypatch.setattr(tiny, "adapted", another)
    with pytest.raises(ModelError, match="not the same here"):
        load_model(file)
