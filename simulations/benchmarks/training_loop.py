"""Benchmarks with interleaved repeats; results are medians over the repeats.

Run them with ``make bench``. They are not tests: nothing checks the numbers.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.data import DataSet, load_dataset
from mdc_flower.engines.ray_superlink import run_on_ray
from mdc_flower.jobs.classification import ClassificationJob
from mdc_flower.models import build_model
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import TrainSettings, evaluate, train
from mdc_flower.training.numerics import pick_autocast_dtype, repeatable
from simulations.benchmarks.coordinator_cost import bench_memory, bench_safety
from strategies.common.errors import MdcError
from strategies.exchange.metrics import ACCURACY, numbers
from strategies.method.round_plan import RoundPlan
from strategies.storage.run_directory import read_history

BATCH_SIZE = 64
LEARNING_RATE = 0.05
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Loop:
    """Result of a training loop: examples per second, and test accuracy in [0, 1]."""

    examples_per_s: float
    accuracy: float


class _ImageRows(Dataset[tuple[Tensor, Tensor]]):
    """Single images, transformed as in the quickstart: converted to float and normalized."""

    def __init__(self, data: DataSet) -> None:
        self.examples = data.train
        self.mean = torch.tensor(data.mean).view(-1, 1, 1)
        self.std = torch.tensor(data.std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(np.array(self.examples.inputs[row])).float() / 255
        return (image - self.mean) / self.std, torch.tensor(self.examples.labels[row])


def quickstart_loop(model: nn.Module, data: DataSet, epochs: int, seed: int) -> float:
    """Train with the plain float32 loop of Flower's PyTorch quickstart; return the seconds.

    Like its ``train`` function, this uses a shuffling DataLoader over transformed images, cross
    entropy, and SGD with momentum 0.9, with one zero_grad, backward and step per batch.
    """
    started = time.perf_counter()
    loader = DataLoader(
        _ImageRows(data),
        batch_size=BATCH_SIZE,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
    return time.perf_counter() - started


def our_loop(model: nn.Module, data: DataSet, epochs: int, seed: int) -> float:
    """Train with our loop at its default precision; return the seconds."""
    plan = RoundPlan(
        round=1,
        local_epochs=epochs,
        lr_max=LEARNING_RATE,
        lr_min=LEARNING_RATE,
        shape="constant",
        seed=seed,
    )
    settings = TrainSettings(
        nesterov=False, batch_size=BATCH_SIZE, autocast_dtype=pick_autocast_dtype("auto", CPU)
    )
    started = time.perf_counter()
    train(model, _job(data, settings), plan, settings, CPU, "bench")
    return time.perf_counter() - started


def _job(data: DataSet, settings: TrainSettings) -> ClassificationJob:
    """Return a job that is only used with models that exist already."""
    splits = {"train": Tensors.of(data.train), "test": Tensors.of(data.test)}
    return ClassificationJob(nn.Identity, splits, settings, InputPipeline.of(data))


def time_loop(
    loop: Callable[[nn.Module, DataSet, int, int], float],
    name: str,
    data: DataSet,
    epochs: int,
    seed: int,
) -> Loop:
    """Train a new model with the loop on one thread, and evaluate it in float32."""
    model = build_model(name, data.input_shape, data.num_classes, seed, data.num_tokens)
    with repeatable(1):
        seconds = loop(model, data, epochs, seed)
        result = evaluate(model, _job(data, TrainSettings()), "test", CPU)
    return Loop(epochs * len(data.train) / seconds, numbers(result.metrics)[ACCURACY.name])


def bench_training(name: str, data: DataSet, epochs: int, repeats: int) -> str:
    """Compare both loops in interleaved repeats; return a sentence with the results."""
    ours, theirs = [], []
    for seed in range(1, repeats + 1):
        theirs.append(time_loop(quickstart_loop, name, data, epochs, seed))
        ours.append(time_loop(our_loop, name, data, epochs, seed))
    ratios = [o.examples_per_s / t.examples_per_s for o, t in zip(ours, theirs, strict=True)]
    return (
        f"training loop, {data.name}, {len(data.train)} images, {name}, batch {BATCH_SIZE}, "
        f"1 thread, {epochs} epochs, {repeats} interleaved repeats: "
        f"{_median(o.examples_per_s for o in ours):.0f} examples/s, compared with "
        f"{_median(t.examples_per_s for t in theirs):.0f} for the quickstart's float32 loop; "
        f"median ratio {statistics.median(ratios):.2f}; test accuracy "
        f"{_mean(o.accuracy for o in ours):.4f} and {_mean(t.accuracy for t in theirs):.4f}"
    )


def bench_simulation(num_sites: int, cores: int, epochs: int, repeats: int) -> str:
    """Return a sentence with the steady-state efficiency of the simulation on Ray.

    Efficiency is the sum of the sites' training seconds, divided by cores times wall seconds, for
    each round except the first, which includes the start of the workers.
    """
    efficiencies: list[float] = []
    for seed in range(1, repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            config = _simulation_config(Path(folder) / "run", num_sites, epochs, seed)
            run_on_ray(config, num_sites, cores)
            for line in read_history(Path(config.output_dir))[1:]:
                trained = sum(m["train-seconds"] for m in line["participants"].values())
                efficiencies.append(trained / (cores * line["seconds"]))
    return (
        f"simulation efficiency, digits, {num_sites} sites on {cores} cores, {epochs} local epochs "
        f"per round, {len(efficiencies)} rounds in {repeats} runs: median "
        f"{statistics.median(efficiencies):.3f}, lowest {min(efficiencies):.3f}"
    )


def _simulation_config(run_dir: Path, num_sites: int, epochs: int, seed: int) -> RunConfig:
    return read_run_config(
        {
            "num-sites": num_sites,
            "epochs": "fixed",
            "local-epochs": epochs,
            "num-rounds": 4,
            "epoch-budget": 0,
            "seed": seed,
            "output-dir": str(run_dir),
        }
    )


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def main(
    dataset: Annotated[str, typer.Option(help="Data set of the training benchmark.")] = "digits",
    data_root: Annotated[str, typer.Option(help="Folder of the built-in data sets.")] = "",
    model: Annotated[str, typer.Option(help="Model of the training benchmark.")] = "small-cnn",
    max_train: Annotated[int, typer.Option(help="Training images to use; 0 for all.")] = 0,
    epochs: Annotated[int, typer.Option(help="Epochs of the training benchmark.")] = 20,
    repeats: Annotated[int, typer.Option(help="Number of interleaved repeats.")] = 5,
    cores: Annotated[int, typer.Option(help="Cores of the simulation benchmark.")] = 2,
) -> None:
    """Print the results, one sentence per benchmark."""
    try:
        data = load_dataset(dataset, data_root, max_train=max_train, max_test=2000)
        typer.echo(bench_training(model, data, epochs, repeats))
        typer.echo(bench_simulation(2 * cores, cores, 40, 2))
        typer.echo(bench_safety(50, 4, 3, repeats))
        for sentence in bench_memory(100, (4, 16), 32, 3, cores):
            typer.echo(sentence)
    except MdcError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
