"""Runs in which sites keep arrays as their own: what travels, and what is evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from mdc_flower.config import RunConfig, read_run_config, read_site_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.model_files import load_model
from mdc_flower.jobs.run_task import load_run_task, load_site_run_task
from strategies.common.errors import ConfigError
from strategies.storage.model_files import StoredArrays, read_model
from strategies.storage.run_directory import (
    CHECKPOINTS,
    GLOBAL_MODEL,
    HISTORY,
    SITES,
    read_history,
    read_summary,
)
from tests import tiny_jobs
from tests.mdc_flower.examples import CPU

JOB = "tests.tiny_jobs:classification"


def config(folder: Path, **keys: Any) -> RunConfig:
    values = {
        **tiny_jobs.KEYS,
        "job": JOB,
        "keep": "bias",
        "site-evaluation": True,
        "output-dir": str(folder),
    }
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def own_arrays(run_dir: Path, site: str) -> dict[str, Any]:
    """Return what a simulated site has after the last round."""
    newest = max((run_dir / SITES / site).glob("*.kept.*"), key=lambda path: path.name)
    return dict(StoredArrays(newest).items())


def model(run_dir: Path) -> dict[str, Any]:
    return dict(read_model(run_dir / GLOBAL_MODEL)[0].items())


def test_one_site_that_keeps_an_array_trains_as_one_that_sends_all(tmp_path: Path) -> None:
    run_in_process(config(tmp_path / "kept", epoch_budget=3), 1)
    run_in_process(config(tmp_path / "sent", epoch_budget=3, keep=""), 1)
    kept, sent = model(tmp_path / "kept"), model(tmp_path / "sent")
    assert list(kept) == ["weight"]
    whole = kept | own_arrays(tmp_path / "kept", "site-0")
    assert sorted(whole) == sorted(sent)
    for name, array in sent.items():
        np.testing.assert_allclose(whole[name], array, rtol=1e-6, atol=1e-7)
    for one, other in zip(*(read_history(tmp_path / n) for n in ("kept", "sent")), strict=True):
        for key in ("start_evaluation", "site_evaluation"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)
        assert one["evaluation"] == {} != other["evaluation"]


def test_each_site_has_its_own_and_is_evaluated_with_it(tmp_path: Path) -> None:
    given = config(tmp_path / "run", epoch_budget=3)
    run_in_process(given, 2)
    sites = [f"site-{number}" for number in range(2)]
    biases = [own_arrays(tmp_path / "run", site)["bias"] for site in sites]
    initial = load_run_task(given).new_model().get_parameter("bias").detach().numpy()
    different = {array.tobytes() for array in (*biases, initial)}
    assert len(different) == 3

    losses, counts = [], []
    for number, bias in enumerate(biases):
        site = read_site_config({"partition-id": number, "num-partitions": 2})
        job = load_site_run_task(given, site).site_job(site)
        rows = [job.splits["validation"].data[row] for row in range(job.size("validation"))]  # type: ignore[attr-defined,arg-type]
        x, y = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        weight = torch.from_numpy(model(tmp_path / "run")["weight"])
        logits = functional.linear(x.to(CPU), weight, torch.from_numpy(bias))
        losses.append(float(functional.cross_entropy(logits, y, reduction="sum")))
        counts.append(len(rows))
    found = read_history(tmp_path / "run")[-1]["site_evaluation"]
    assert found["validation-loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-5)
    assert found["num-validation-examples"] == sum(counts)


def test_nothing_that_the_coordinator_stores_or_sends_has_it(tmp_path: Path) -> None:
    keys = {"outer-optimizer": "momentum", "keep-updates": True, "average-last": 2}
    run_in_process(config(tmp_path / "run", **keys), 2)
    stored = {
        path: list(StoredArrays(path))
        for path in tmp_path.rglob("*.safetensors")
        if SITES not in path.parts
    }
    assert {path.parent.name for path in stored} >= {CHECKPOINTS, "round-00002", "run"}
    for path, names in stored.items():
        sent = {name.removeprefix("momentum/") for name in names if name != "steps"}
        assert sent == {"weight"}, path
    summary = read_summary(tmp_path / "run")
    assert summary["exchanged"] == {"arrays": 1, "bytes": 32, "base": "", "kept": ["bias"]}
    assert summary["final"] == read_history(tmp_path / "run")[-1]["site_evaluation"]
    with pytest.raises(ConfigError, match="some arrays never left the sites"):
        load_model(tmp_path / "run" / GLOBAL_MODEL)


@pytest.mark.parametrize("optimizer_state", ["reset", "keep"])
def test_a_resumed_run_gives_the_same_bits(tmp_path: Path, optimizer_state: str) -> None:
    keys = {"optimizer_state": optimizer_state}
    run_in_process(config(tmp_path / "whole", epoch_budget=4, **keys), 2)
    run_in_process(config(tmp_path / "cut", epoch_budget=2, **keys), 2)
    run_in_process(config(tmp_path / "cut", epoch_budget=4, resume=True, **keys), 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert (whole / GLOBAL_MODEL).read_bytes() == (cut / GLOBAL_MODEL).read_bytes()
    for site in ("site-0", "site-1"):
        one, other = own_arrays(whole, site), own_arrays(cut, site)
        assert one["bias"].tobytes() == other["bias"].tobytes()
    assert all(line["began_anew"] == [] for line in read_history(cut))


def test_beside_a_base_that_is_checked_and_not_exchanged(tmp_path: Path) -> None:
    keys = {"job": "tests.tiny_jobs:adapted", "exchange": "trainable", "keep": "2.bias"}
    run_in_process(config(tmp_path / "run", **keys), 2)
    assert list(model(tmp_path / "run")) == ["2.weight"]
    assert list(own_arrays(tmp_path / "run", "site-0")) == ["2.bias"]
    assert len(read_summary(tmp_path / "run")["exchanged"]["base"]) == 64


def test_statistics_of_batch_norm_can_stay_at_the_sites(tmp_path: Path) -> None:
    keys = {**normalized(), "keep": "0.running_*, 0.num_batches_tracked"}
    run_in_process(config(tmp_path / "run", **keys), 2)
    assert sorted(model(tmp_path / "run")) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    means = [own_arrays(tmp_path / "run", f"site-{n}")["0.running_mean"] for n in range(2)]
    assert means[0].any()
    assert means[0].tobytes() != means[1].tobytes()


def normalized() -> dict[str, Any]:
    return {
        "job": "classification",
        "dataset": "tests.tiny:vectors",
        "model": "tests.tiny:normalized",
    }


@pytest.mark.parametrize(
    ("keep", "problem"),
    [
        ("biases", "keep: nothing in the model matches"),
        ("*", "every trainable parameter stays at the sites"),
        ("trainable", "every trainable parameter stays at the sites"),
    ],
)
def test_a_run_that_cannot_work_is_refused(tmp_path: Path, keep: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run_in_process(config(tmp_path / "run", keep=keep), 2)
    assert not (tmp_path / "run" / HISTORY).exists()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"site_evaluation": False}, "keep needs site-evaluation = true"),
        ({"batch_norm": "local"}, "keep and batch-norm 'local' exclude each other"),
    ],
)
def test_keys_that_do_not_fit_keep(tmp_path: Path, keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config(tmp_path, **keys)
