"""Two processes that train one model: the same bits, however they do it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.job import Part, Pass, Spare
from mdc_flower.training.runtime import ONE
from strategies.common.seeds import derive_seed
from strategies.storage.model_files import read_model
from tests.mdc_flower.training.rank_jobs import CASES, CPU, PLAN, Network, exchanged, job, trained

Stored = dict[str, tuple[dict[str, NDArray[Any]], dict[str, Any]]]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Return arrays and numbers of all cases, computed by two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.mdc_flower.training.rank_jobs", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {path.stem: read_model(path) for path in folder.glob("*.safetensors")}


def averaged(case: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Train in this process: compute both halves of each batch, and average the gradients."""
    own = job(**case)
    settings = own.settings
    halves = [Network().train(), Network().train()]
    if own.pipeline.channels_last:
        halves = [half.to(memory_format=torch.channels_last) for half in halves]
    parameters = [list(half.parameters()) for half in halves]
    kind: Any = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.SGD
    given: dict[str, Any] = {"weight_decay": settings.weight_decay}
    if kind is torch.optim.SGD:
        given |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
    optimizer = kind(parameters[0], lr=0.0, **given)
    seed = derive_seed(PLAN.seed, "batches", PLAN.round, "north")
    orders = [torch.Generator().manual_seed(seed) for _ in halves]
    steps, step = PLAN.local_epochs * own.steps_per_epoch(), 0
    for _ in range(PLAN.local_epochs):
        parts = [
            own.batches(Pass("train", CPU, order, True, rank=rank, ranks=2))
            for rank, order in enumerate(orders)
        ]
        for pair in zip(*parts, strict=True):
            counts = [0 if isinstance(part, Spare) else len(part[1]) for part in pair]
            for target, source in zip(halves[1].buffers(), halves[0].buffers(), strict=True):
                target.copy_(source)
            for half, part, count in zip(halves, pair, counts, strict=True):
                inputs, labels = part.batch if isinstance(part, Spare) else part
                loss = nn.functional.cross_entropy(half(inputs), labels)
                half.zero_grad()
                (loss * (2 * count / sum(counts))).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for p, q in zip(*parameters, strict=True):
                    assert p.grad is not None
                    assert q.grad is not None
                    p.grad = (p.grad + q.grad) / 2
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(parameters[0], settings.clip_norm)
            optimizer.param_groups[0]["lr"] = PLAN.lr_at(step / (steps - 1) if steps > 1 else 0.0)
            optimizer.step()
            with torch.no_grad():
                for p, q in zip(*parameters, strict=True):
                    q.copy_(p)
            step += 1
    assert step == steps
    return model_arrays(halves[0])


def bits(arrays: dict[str, NDArray[Any]]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.integration
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_the_bits_of_one_that_averages_both_halves(
    by_two: Stored, name: str, way: str
) -> None:
    arrays, _ = by_two[f"{name}-{way}-0"]
    expected = averaged(CASES[name])
    if (name, way) == ("clipped", "fsdp"):  # it adds up the norm of the gradient shard by shard
        for key, array in arrays.items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-4, atol=1e-7)
    else:
        assert bits(arrays) == bits(expected)


@pytest.mark.integration
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_give_the_same_bits_twice(by_two: Stored, way: str) -> None:
    first, second = by_two[f"even-{way}-0"], by_two[f"even-{way}-1"]
    assert bits(first[0]) == bits(second[0])
    assert first[1] == second[1]


@pytest.mark.integration
@pytest.mark.parametrize("name", CASES)
def test_numbers_do_not_depend_on_how_many_processes_there_are(by_two: Stored, name: str) -> None:
    own_arrays, own = trained(ONE, CASES[name])
    for way in ("ddp", "fsdp"):
        arrays, told = by_two[f"{name}-{way}-0"]
        assert told["steps"] == own["steps"]
        # BatchNorm normalizes each half alone, so training is not the same as in one process.
        assert told["loss"] == pytest.approx(own["loss"], rel=0.2)
        validation, expected = told["validation"], own["validation"]
        assert validation[:2] == pytest.approx(expected[:2], rel=1e-6)
        assert repr(validation[2]) == repr(expected[2])  # equal, with NaN
        assert {name: array.shape for name, array in arrays.items()} == {
            name: array.shape for name, array in own_arrays.items()
        }


@pytest.mark.integration
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_add_up_the_gradients_of_micro_batches(by_two: Stored, way: str) -> None:
    arrays, _ = by_two[f"micro-{way}"]
    expected, _ = exchanged(ONE, is_steady=True)
    assert sorted(arrays) == ["classes.bias", "classes.weight"]
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6)
    assert bits(arrays) != bits(by_two[f"steady-{way}"][0])  # it is not the same computation


@pytest.mark.integration
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_exchange_a_part_and_check_the_rest(by_two: Stored, way: str) -> None:
    arrays, _ = by_two[f"steady-{way}"]
    expected, _ = exchanged(ONE, is_steady=True)
    assert sorted(arrays) == sorted(expected) == ["classes.bias", "classes.weight"]
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6)
    sent, told = by_two[f"drifting-{way}"]
    assert not sent
    assert told == exchanged(ONE, is_steady=False)[1]
    assert "'norm.running_mean', the first of 3 that changed" in told["error"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 33])
def test_the_parts_of_a_batch_are_the_batch(count: int, ranks: int) -> None:
    parts = [Pass("train", CPU, rank=rank, ranks=ranks).part(count) for rank in range(ranks)]
    rows = np.arange(count)
    counting = [rows[part.rows] for part in parts if not part.is_spare]
    assert sorted(np.concatenate(counting)) == list(rows)
    assert max(map(len, counting)) - min(map(len, counting)) <= 1
    assert all(len(rows[part.rows]) >= min(2, count) for part in parts)


def test_a_spare_part_marks_its_batch() -> None:
    assert Part(slice(None)).of("batch") == "batch"
    assert Part(slice(0, 2), is_spare=True).of("batch") == Spare("batch")
