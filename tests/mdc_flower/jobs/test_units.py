"""What a loss is a mean over is known before the device has computed anything."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from mdc_flower.config import RunConfig
from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.language_model import causal_language_model
from mdc_flower.jobs.segmentation import segmentation
from mdc_flower.jobs.torch_job import TorchJob, torch_job
from mdc_flower.training.job import Counted, Forward, Pass
from mdc_flower.training.loop import TrainResult, TrainSettings, evaluate, train
from mdc_flower.training.micro_batches import micro_batches
from mdc_flower.training.model_trial import try_job
from mdc_flower.training.runtime import ONE
from strategies.common.errors import ConfigError
from strategies.method.round_plan import RoundPlan
from tests import tiny_jobs
from tests.gpu import CUDA, NEEDS_GPU
from tests.mdc_flower.training.waits import Waits

CPU = torch.device("cpu")
SHIPPED = [tiny_jobs.labels, tiny_jobs.line, tiny_jobs.pixels, tiny_jobs.texts]


def steps_of(job: Any, steps: int, device: torch.device = CPU, **settings: Any) -> TrainResult:
    """Train a new model of the job for so many steps."""
    plan = RoundPlan(
        round=1, local_epochs=0, local_steps=steps, lr_max=0.1, lr_min=0.1, shape="constant", seed=1
    )
    torch.manual_seed(1)
    return train(job.model(), job, plan, TrainSettings(**settings), device, "north")


@pytest.mark.parametrize("micro_batch_size", [0, 2])
@pytest.mark.parametrize("build", SHIPPED)
def test_no_shipped_job_waits_for_the_device_from_step_to_step(
    build: Callable[[JobContext], TorchJob], micro_batch_size: int
) -> None:
    job = build(JobContext(RunConfig()))
    two, five = (waits_of(job, steps, micro_batch_size) for steps in (2, 5))
    assert two == five
    assert two["_local_scalar_dense"] > 0  # the sums of the round


def waits_of(job: TorchJob, steps: int, micro_batch_size: int = 0) -> Counter[str]:
    """Return how often the CPU waits for the device in so many steps."""
    waits = Waits()
    with waits:
        steps_of(job, steps, micro_batch_size=micro_batch_size)
    return waits.found


def test_a_job_that_counts_in_its_loss_waits_in_every_step() -> None:
    job = in_the_loss(tiny_jobs.texts(JobContext(RunConfig())))
    more = waits_of(job, 5)
    more.subtract(waits_of(job, 2))
    assert more["_local_scalar_dense"] == 3


class Strict(TorchJob):
    """Lets CUDA raise an error if the CPU waits for it after the first step."""

    def batches(self, which: Pass) -> Iterator[Any]:
        try:
            for number, batch in enumerate(super().batches(which)):
                if number == 1:
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("build", SHIPPED)
@pytest.mark.parametrize("device", [pytest.param(CUDA, marks=NEEDS_GPU)])
def test_cuda_sees_no_waiting_from_step_to_step(
    build: Callable[[JobContext], TorchJob], device: torch.device
) -> None:
    job = build(JobContext(RunConfig()))
    steps_of(Strict(**vars(job)), 5, device)


def in_the_loss(job: TorchJob) -> TorchJob:
    """Return a job that counts only in its loss, as those of users may."""
    return replace(job, units=None)


@pytest.mark.parametrize("micro_batch_size", [0, 2])
@pytest.mark.parametrize("build", [tiny_jobs.pixels, tiny_jobs.texts])
def test_a_job_that_counts_in_its_loss_has_the_same_bits(
    build: Callable[[JobContext], TorchJob], micro_batch_size: int
) -> None:
    job = build(JobContext(RunConfig()))
    done = [steps_of(one, 5, micro_batch_size=micro_batch_size) for one in (job, in_the_loss(job))]
    assert done[0].sums == done[1].sums
    assert done[0].sums["loss"][1] == int(done[0].sums["loss"][1]) > 0
    found = [evaluate(one.model(), one, "validation", CPU).sums for one in (job, in_the_loss(job))]
    assert found[0]["loss"][1] == found[1]["loss"][1]


def test_the_numbers_are_divided_with_the_batch() -> None:
    job = tiny_jobs.texts(JobContext(RunConfig()))
    (whole, *_), shared = (
        list(job.batches(of())),
        [next(job.batches(of(rank, 2))) for rank in (0, 1)],
    )
    assert isinstance(whole, Counted)
    counted = [int(labels) for labels in (whole.batch["labels"][:, 1:] != -100).sum(1)]
    assert whole.units.tolist() == counted
    assert [part.units.tolist() for part in shared] == [counted[0::2], counted[1::2]]
    assert [one.units.tolist() for one in micro_batches(whole, 2, ONE)] == [
        counted[:2],
        counted[2:],
    ]
    forward = job.forward(job.model(), whole)
    assert forward.count == sum(counted)
    assert forward.examples == 4


def of(rank: int = 0, ranks: int = 1) -> Pass:
    return Pass("train", CPU, torch.Generator().manual_seed(1), rank=rank, ranks=ranks)


X = torch.arange(8.0)[:, None]


def own(loss: Any, **options: Any) -> TorchJob:
    data = TensorDataset(X, X)
    parts: dict[str, Any] = {"model": lambda: nn.Linear(1, 1), "train": data, "batch_size": 4}
    return torch_job(loss=loss, **{**parts, **options})


def test_a_loss_that_is_a_mean_is_one_over_the_units() -> None:
    job = own(
        functional.mse_loss, units=lambda batch: 3 * torch.ones(len(batch[0]), dtype=torch.long)
    )
    assert steps_of(job, 2).sums["loss"][1] == 2 * 4 * 3


def summed(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss and its number as tensors."""
    return ((outputs - targets) ** 2).sum(), (targets > 0).sum()


def test_a_loss_may_return_its_number_as_a_tensor() -> None:
    assert steps_of(own(summed), 2).sums["loss"][1] == 7


def test_units_that_the_loss_does_not_count_are_refused_before_a_run() -> None:
    job = own(summed, units=lambda batch: 2 * torch.ones(len(batch[0]), dtype=torch.long))
    with pytest.raises(ConfigError, match="another number than `units` counts"):
        try_job(job, TrainSettings())


class TensorCount:
    """A job of the user's own class, whose forward pass leaves the count on the device."""

    def __init__(self, job: TorchJob) -> None:
        self.job = job

    def __getattr__(self, name: str) -> Any:
        return getattr(self.job, name)

    def forward(self, model: Any, batch: Any) -> Forward:
        """Return a count that is a tensor."""
        done = self.job.forward(model, batch)
        return replace(done, count=torch.tensor(done.count))  # type: ignore[arg-type]


def test_a_count_that_is_a_tensor_is_refused_before_a_run() -> None:
    with pytest.raises(ConfigError, match="the count is a tensor"):
        try_job(TensorCount(own(functional.mse_loss)), TrainSettings())


def test_a_forward_pass_of_the_users_counts_what_its_targets_say() -> None:
    tokens = torch.arange(12).reshape(4, 3) % 5

    def only_the_last(model: Any, batch: Any) -> Any:
        labels = batch[0].clone()
        labels[:, :2] = -100
        return model(batch[0])["logits"], labels

    data: dict[str, Any] = {
        "train": TensorDataset(tokens),
        "batch_size": 4,
        "forward": only_the_last,
    }
    job = causal_language_model(tiny_jobs.Bigram, **data)
    assert steps_of(job, 1).sums["loss"][1] == 4


def test_a_confusion_matrix_has_the_pixels_that_count() -> None:
    targets = torch.tensor([[[0, 1, 2], [2, 255, 0]]])
    outputs = functional.one_hot(torch.tensor([[[0, 2, 2], [1, 1, 0]]]), 3).movedim(-1, 1).float()
    job = segmentation(nn.Identity, 3)
    sums = job.forward(nn.Identity(), (outputs, targets)).sums["confusion"]
    # Rows are true classes: 0 twice found, 1 taken for 2, 2 found once and taken for 1 once.
    assert sums.tolist() == [2, 0, 0, 0, 0, 1, 0, 1, 1]
    assert sums.dtype == torch.float64
