"""Our training loop, compared with a loop written by hand that has all data on the device.

On a GPU: ``python -m simulations.benchmarks.device_loop``. On a CPU, with a smaller model and
batches: ``... --device cpu --model small-cnn --batch-size 64 --examples 1280 --precision none``.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from mdc_flower.data import Examples
from mdc_flower.jobs.classification import ClassificationJob
from mdc_flower.models import build_model
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import TrainSettings, train
from mdc_flower.training.numerics import (
    device_name,
    number_format,
    pick_autocast_dtype,
    pick_device,
    repeatable,
)
from strategies.common.errors import MdcError
from strategies.method.round_plan import RoundPlan

SHAPE, NUM_CLASSES = (3, 32, 32), 10
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Work:
    """What every loop has to do: train a new model on the same random images."""

    images: Examples
    model: str
    settings: TrainSettings
    device: torch.device
    epochs: int
    threads: int

    def new_model(self) -> nn.Module:
        """Return a new model."""
        return build_model(self.model, SHAPE, NUM_CLASSES, seed=1)


def by_hand(work: Work) -> None:
    """Train as plainly as it can be written: no metrics, order drawn on the device."""
    device, settings = work.device, work.settings
    inputs = torch.from_numpy(work.images.inputs).to(device)
    labels = torch.from_numpy(work.images.labels).to(device)
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (MEAN, STD))
    model = work.new_model().to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, fused=True
    )
    precision = settings.autocast_dtype
    for _ in range(work.epochs):
        order = torch.randperm(len(labels), device=device)
        for rows in torch.split(order, settings.batch_size):
            batch = (inputs[rows].float() / 255 - mean) / std
            batch = batch.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                loss = nn.functional.cross_entropy(model(batch), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def with_our_loop(work: Work, augment: str = "none", is_sent: bool = False) -> None:
    """Train with our loop; ``is_sent`` leaves the inputs on the CPU, from where they are sent."""
    tensors = Tensors.of(work.images)
    if is_sent:
        tensors = replace(tensors, inputs=torch.from_numpy(work.images.inputs))
    pipeline = InputPipeline(MEAN, STD, augment)
    job = ClassificationJob(work.new_model, {"train": tensors}, work.settings, pipeline)
    plan = RoundPlan(
        round=1,
        local_epochs=work.epochs,
        lr_max=LEARNING_RATE,
        lr_min=LEARNING_RATE,
        shape="constant",
        seed=1,
    )
    train(job.model(), job, plan, work.settings, work.device, "bench")


@contextmanager
def _fastest(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose the fastest kernels, whether they are reproducible or not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


LOOPS: Mapping[str, tuple[Callable[[Work], None], bool]] = {
    # Whether the loop computes with reproducible kernels, as ours always does.
    "by hand, fastest kernels": (by_hand, False),
    "by hand, reproducible kernels": (by_hand, True),
    "ours": (with_our_loop, True),
    "ours, augmented (crop-flip)": (lambda work: with_our_loop(work, "crop-flip"), True),
    "ours, inputs not resident": (lambda work: with_our_loop(work, is_sent=True), True),
}


def examples_per_s(name: str, work: Work) -> float:
    """Return the speed of a loop."""
    loop, is_repeatable = LOOPS[name]
    kernels = repeatable(work.threads, work.device) if is_repeatable else _fastest(work.device)
    with kernels, _threads(work.threads):
        started = time.perf_counter()
        loop(work)
        if work.device.type == "cuda":
            torch.cuda.synchronize()
        return work.epochs * len(work.images) / (time.perf_counter() - started)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured(work: Work, repeats: int) -> dict[str, list[float]]:
    """Return the speeds of all loops in interleaved repeats, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in LOOPS}
    for repeat in range(repeats + 1):
        for name, speeds in found.items():
            speed = examples_per_s(name, work)
            if repeat:
                speeds.append(speed)
    return found


def table(found: Mapping[str, list[float]]) -> str:
    """Return the medians, and the median ratios to both loops that are written by hand."""
    lines = ["| loop | examples/s | to the fastest | to the reproducible |", "|---|---:|---:|---:|"]
    first, second, *_ = found.values()
    for name, speeds in found.items():
        ratios = [
            statistics.median(own / other for own, other in zip(speeds, others, strict=True))
            for others in (first, second)
        ]
        shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {name} | {statistics.median(speeds):.0f} | {shown} |")
    return "\n".join(lines)


def random_images(count: int) -> Examples:
    """Return random images and labels: what they show does not change the speed."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (count, *SHAPE), np.uint8)
    return Examples(inputs, random.integers(0, NUM_CLASSES, count))


def main(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    model: Annotated[str, typer.Option(help="Model, as in the run config.")] = (
        "torchvision:resnet18"
    ),
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 512,
    precision: Annotated[str, typer.Option(help="none, bf16, fp16 or auto")] = "bf16",
    examples: Annotated[int, typer.Option(help="Images of 3x32x32.")] = 25600,
    epochs: Annotated[int, typer.Option(help="Epochs of a repeat.")] = 2,
    repeats: Annotated[int, typer.Option(help="Number of interleaved repeats.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Print a table of the speeds."""
    try:
        chosen = pick_device(device)
        settings = TrainSettings(
            batch_size=batch_size, autocast_dtype=pick_autocast_dtype(precision, chosen)
        )
        work = Work(random_images(examples), model, settings, chosen, epochs, threads)
        typer.echo(
            f"{device_name(chosen)}, torch {torch.__version__}: {model}, batch {batch_size}, "
            f"{number_format(settings.autocast_dtype)}, channels-last, {examples} images of "
            f"3x32x32, {epochs} epochs, {repeats} interleaved repeats, {threads} CPU thread(s)\n"
        )
        typer.echo(table(measured(work, repeats)))
    except MdcError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
