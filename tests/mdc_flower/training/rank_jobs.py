"""What the processes of `test_ranks.py` compute: start it as `torchrun` starts a script."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from mdc_flower.data import Examples
from mdc_flower.jobs.classification import ClassificationJob
from mdc_flower.site.client import SiteClient
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.batch_norm import recalibrate
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import TrainSettings, evaluate, train
from mdc_flower.training.ranks import Ranks
from mdc_flower.training.runtime import Runtime
from strategies.common.errors import ModelError
from strategies.common.files import write_atomically
from strategies.storage.model_files import model_parts
from tests.mdc_flower.examples import plan

CPU = torch.device("cpu")
PLAIN = TrainSettings(batch_size=8)
PLAN = plan(local_epochs=2, lr_max=0.1, lr_min=0.02)
AUGMENTED = InputPipeline((0.5,), (0.25,), "crop-flip", channels_last=False)


class Network(nn.Module):
    """Convolution, BatchNorm, and a list of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(2)])
        self.classes = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(images)).relu().mean((2, 3))
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.classes(hidden)
        return logits


def images(count: int) -> Tensors:
    """Return images of three classes."""
    random = np.random.default_rng(1)
    inputs = random.integers(0, 255, (count, 1, 8, 8), np.uint8)
    return Tensors.of(Examples(inputs, random.integers(0, 3, count).astype(np.int64)))


def job(count: int, settings: TrainSettings = PLAIN, channels_last: bool = False) -> Any:
    """Return a job; all its examples are for training and for validation."""
    examples, pipeline = images(count), replace(AUGMENTED, channels_last=channels_last)
    splits = {"train": examples, "validation": examples}
    return ClassificationJob(Network, splits, settings, pipeline)


CASES: dict[str, dict[str, Any]] = {
    # The last batch of 30 examples has 6; that of 35 has 3, too few for two processes.
    "even": {"count": 32},
    "uneven": {"count": 30},
    "spare": {"count": 35},
    "three": {"count": 3},
    "clipped": {"count": 32, "settings": replace(PLAIN, clip_norm=0.05)},
    "adamw": {"count": 32, "settings": replace(PLAIN, optimizer="adamw", momentum=0.0)},
    "plain-momentum": {"count": 32, "settings": replace(PLAIN, nesterov=False)},
    "channels-last": {"count": 32, "channels_last": True},
}


def trained(runtime: Runtime, case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return arrays and numbers of a training, an evaluation and a recalibration."""
    own = job(**case)
    start = list(model_arrays(Network()).values())
    model = own.model()
    runtime.load(model, start if runtime.rank == 0 else [])
    settings = own.settings
    result = train(model, own, PLAN, settings, CPU, "north", runtime=runtime)
    names = list(model_arrays(Network()))
    arrays = runtime.gather(model, names)
    fresh = own.model()
    runtime.load(fresh, start if runtime.rank == 0 else [])
    runtime.place(fresh, CPU)
    recalibrate(fresh, own, CPU, None, 1, "north")
    found = evaluate(fresh, own, "validation", CPU, runtime=runtime)
    numbers = {
        "steps": result.num_steps,
        "loss": result.loss,
        "metrics": dict(result.metrics),
        "validation": [found.loss, found.num_examples, dict(found.metrics)],
    }
    return arrays, numbers


class Frozen(Network):
    """The same, frozen but for the last layer; whether BatchNorm stays in evaluation mode."""

    def __init__(self, is_steady: bool) -> None:
        super().__init__()
        self.is_steady = is_steady
        self.requires_grad_(False).classes.requires_grad_(True)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.norm.train(mode and not self.is_steady)
        return self


def exchanged(
    runtime: Runtime, is_steady: bool, micro_batch_size: int = 0
) -> tuple[Any, dict[str, Any]]:
    """Return what a site sends that exchanges the last layer, or the error that it reports."""
    settings = replace(PLAIN, micro_batch_size=micro_batch_size)
    own = replace(job(35), new_model=lambda: Frozen(is_steady))
    client = SiteClient("north", own, settings, CPU, runtime=runtime, exchange="trainable")
    start = list(model_arrays(Network(), client.names).values())
    given: Any = {**PLAN.to_config_record()}
    try:
        sent, _, _ = client.fit(start if runtime.rank == 0 else [], given)
    except ModelError as error:
        return {}, {"error": str(error)}
    return dict(zip(client.names, sent, strict=runtime.rank == 0)), {}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")
    for shard in (False, True):
        runtime = Ranks(shard)
        for name, case in CASES.items():
            for time in range(2 if name == "even" else 1):
                arrays, numbers = trained(runtime, case)
                if runtime.rank == 0:
                    stem = f"{name}-{'fsdp' if shard else 'ddp'}-{time}"
                    write_atomically(folder / f"{stem}.safetensors", model_parts(arrays, numbers))
        for name, given in (("steady", (True,)), ("micro", (True, 3)), ("drifting", (False,))):
            arrays, about = exchanged(runtime, *given)
            if runtime.rank == 0:
                stem = f"{name}-{'fsdp' if shard else 'ddp'}"
                write_atomically(folder / f"{stem}.safetensors", model_parts(arrays, about))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
