"""The training loop on a CPU and on a GPU: no waiting, every precision, and the same bits again."""

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdc_flower.jobs.classification import ClassificationJob
from mdc_flower.site.client import SiteClient
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.runtime import Saved
from tests.gpu import CUDA, DEVICES, NEEDS_GPU
from tests.mdc_flower.examples import plan
from tests.mdc_flower.training.device_rounds import (
    digest,
    evaluated,
    job,
    numbers,
    trained,
)
from tests.mdc_flower.training.waits import Waits

ROOT = Path(__file__).parents[3]

PRECISIONS: list[torch.dtype | None] = [None, torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    "changes", [{}, {"clip_norm": 0.0}, {"optimizer": "adamw"}, {"label_smoothing": 0.1}]
)
def test_nothing_waits_for_the_device_from_step_to_step(changes: dict[str, Any]) -> None:
    found = []
    for count in (32, 160):
        own = job(count, **changes)
        with Waits() as waits:
            trained(own, torch.device("cpu"))
        found.append(waits.found)
    assert found[0] == found[1]
    assert found[0]["_local_scalar_dense"] > 0  # the sums of an epoch


def test_nothing_waits_for_the_device_from_batch_to_batch_of_an_evaluation() -> None:
    found = []
    for count in (100, 1000):  # one batch and four
        with Waits() as waits:
            evaluated(job(count), "test", torch.device("cpu"))
        found.append(waits.found)
    assert found[0] == found[1]
    assert found[0]["_local_scalar_dense"] > 0


class Strict(ClassificationJob):
    """Lets CUDA raise an error if the CPU waits for it during an epoch."""

    def batches(self, which: Any) -> Iterator[Any]:
        try:
            for number, batch in enumerate(super().batches(which)):
                if number == 1:  # the first step makes what the others need
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("device", [pytest.param(CUDA, marks=NEEDS_GPU)])
def test_cuda_sees_no_waiting_within_an_epoch(
    device: torch.device, dtype: torch.dtype | None
) -> None:
    own = job(160, autocast_dtype=dtype)
    strict = Strict(own.new_model, own.splits, own.settings, own.pipeline)
    trained(strict, device)
    evaluated(strict, "test", device)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_round_learns_in_every_precision_and_has_the_same_bits_again(
    device: torch.device, dtype: torch.dtype | None
) -> None:
    own = job(autocast_dtype=dtype)
    (first, result), (second, again) = (trained(own, device) for _ in range(2))
    assert digest(first) == digest(second)
    assert numbers(result) == numbers(again)
    assert all(p.dtype == torch.float32 for p in first.parameters())
    assert result.num_examples == 70
    assert result.loss < math.log(3)  # that of guessing


@pytest.mark.parametrize("device", [pytest.param(CUDA, marks=NEEDS_GPU)])
def test_a_gpu_trains_as_a_cpu_does(device: torch.device) -> None:
    own = job()
    (here, expected), (there, result) = (trained(own, d) for d in (torch.device("cpu"), device))
    assert result.num_steps == expected.num_steps
    assert result.loss == pytest.approx(expected.loss, rel=1e-3)
    for name, array in model_arrays(here).items():
        torch.testing.assert_close(
            there.state_dict()[name].cpu(), torch.from_numpy(array), rtol=2e-2, atol=2e-3
        )


class Interrupted(Exception):  # noqa: N818
    """Ends a training."""


class OneEpoch:
    """Keeps the state after the first epoch; ends the training there if it is the first."""

    def __init__(self) -> None:
        self.kept: Saved | None = None

    def read(self) -> Saved | None:
        return self.kept

    def is_due(self) -> bool:
        return True

    def write(self, saved: Saved) -> None:
        self.kept = saved
        raise Interrupted

    def unusable(self, error: Exception) -> Exception:
        return error


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_training_that_continues_after_an_epoch_has_the_bits_of_one_that_was_not_stopped(
    device: torch.device, dtype: torch.dtype | None
) -> None:
    own, epochs = job(autocast_dtype=dtype), OneEpoch()
    expected, _ = trained(own, device)
    with pytest.raises(Interrupted):
        trained(own, device, epochs=epochs)
    model, _ = trained(own, device, epochs=epochs)
    assert digest(model) == digest(expected)


@pytest.mark.parametrize("device", [pytest.param(CUDA, marks=NEEDS_GPU)])
def test_two_processes_on_one_gpu_compute_the_bits_of_one(device: torch.device) -> None:
    command = [sys.executable, "-m", "tests.mdc_flower.training.device_rounds", str(device)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = [one.communicate(timeout=600)[0].strip() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    model, _ = trained(job(), device)
    assert printed == [digest(model)] * 2


NO_COMPILER = "torch.compile needs a C++ compiler for a CPU, and there is none"


# Real compilation, because only that shows what torch keeps: 15 s.
@pytest.mark.integration
@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            torch.device("cpu"),
            id="cpu",
            marks=pytest.mark.skipif(not shutil.which("g++"), reason=NO_COMPILER),
        ),
        pytest.param(CUDA, id="cuda", marks=NEEDS_GPU),
    ],
)
def test_a_process_compiles_once_for_all_rounds(device: torch.device) -> None:
    # Every message has a new model; 36 examples are batches of 16 and of 4.
    from torch._dynamo.utils import counters  # its import takes seconds

    torch._dynamo.reset()
    own = replace(job(36, compile=True), new_model=Small)
    client = SiteClient("north", own, own.settings, device)
    arrays, _, _ = client.fit(client.get_parameters({}), config(1))
    compiled = dict(counters["stats"])
    assert compiled["unique_graphs"] > 0
    for number in (2, 3):
        arrays, _, _ = client.fit(arrays, config(number))
        assert dict(counters["stats"]) == compiled


class Small(nn.Module):
    """A linear model of images, whose code no other model shares."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.classes(images.flatten(1))
        return outputs


def config(number: int) -> dict[str, Any]:
    return {**plan(round=number, local_epochs=2, lr_max=0.1, lr_min=0.1).to_config_record()}
