"""What the processes of `test_rank_states.py` compute: start it as `torchrun` starts a script."""

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from mdc_flower.site.client import SiteClient
from mdc_flower.site.round_files import RoundFiles
from mdc_flower.site.state import KeptOptimizer, SiteState
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.loop import TrainSettings
from mdc_flower.training.loop_state import LoopState
from mdc_flower.training.ranks import Ranks
from mdc_flower.training.runtime import ONE, Runtime, Saved
from mdc_flower.training.stores import Store, load, save
from strategies.common.errors import EngineError, StateMissingError
from strategies.common.files import write_atomically
from strategies.exchange.lineage import Lineage
from strategies.storage.model_files import model_parts
from tests.mdc_flower.examples import plan
from tests.mdc_flower.training.rank_jobs import CPU, job

PLAN = plan(local_epochs=3, lr_max=0.05, lr_min=0.01, shape="cosine")
SETTINGS = {
    "sgd": TrainSettings(batch_size=12, weight_decay=1e-3),
    "adamw": TrainSettings(batch_size=12, optimizer="adamw", momentum=0.0),
}


class Network(nn.Module):
    """Draws from three generators; three processes cannot divide any of its layers evenly."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.conv = nn.Conv2d(1, 5, 3)
            self.norm = nn.BatchNorm2d(5)
            self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
            self.scale = nn.Linear(5, 1)  # two of the processes have nothing of its weight
            self.classes = nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        noise = random.random() + float(np.random.random())
        hidden = self.norm(self.conv(images + 0.1 * noise * self.training)).relu().mean((2, 3))
        for block in self.blocks:
            hidden = nn.functional.dropout(block(hidden), 0.3, self.training)
        logits: torch.Tensor = self.classes(hidden) * self.scale(hidden)
        return logits


class Stopped(RoundFiles):
    """Ends the training when an epoch has been saved."""

    last = 0

    def is_due(self) -> bool:
        return True

    def write(self, saved: Saved) -> None:
        super().write(saved)
        if saved[1]["epoch"] == self.last:
            raise InterruptedError


def kept(folder: Path, number: int, named: str = "") -> KeptOptimizer:
    """Return the store of an optimizer's state before and after a round."""
    planned = PLAN.model_copy(update={"round": number})
    return KeptOptimizer(SiteState(folder, planned, Lineage("1", named)))


def client(runtime: Runtime, name: str) -> SiteClient:
    own = replace(job(40, SETTINGS[name]), new_model=Network)
    return SiteClient("north", own, SETTINGS[name], CPU, runtime=runtime)


def fit(
    runtime: Runtime, name: str, epochs: Store | None, carried: Store | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arrays and numbers of a site's reply."""
    site = client(runtime, name)
    site.epochs, site.carried = epochs, carried
    start = list(model_arrays(Network(), site.names).values()) if runtime.rank == 0 else []
    sent, count, metrics = site.fit(start, {**PLAN.to_config_record()})  # type: ignore[dict-item]
    del metrics["train-seconds"]
    return dict(zip(site.names, sent, strict=runtime.rank == 0)), metrics | {"count": count}


def at_first(runtime: Runtime, make: Callable[[], Store]) -> Store | None:
    return make() if runtime.rank == 0 else None


def continued(
    folder: Path, runtime: Runtime, name: str, last: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train until an epoch has been saved, then go on with a new model."""
    stopped = Stopped(folder / "round", "0" * 24)
    stopped.last = last
    try:
        fit(runtime, name, at_first(runtime, lambda: stopped), None)
        raise AssertionError("training was not stopped")
    except (InterruptedError, EngineError):
        pass
    files = RoundFiles(folder / "round", "0" * 24)
    state = at_first(runtime, lambda: kept(folder / "state", 1))
    arrays, numbers = fit(runtime, name, at_first(runtime, lambda: files), state)
    assert files.continued == (runtime.rank == 0)
    return arrays, numbers


def carried_again(runtime: Runtime, name: str, folder: Path) -> dict[str, Any]:
    """Return the optimizer's state that is read from a folder, after it was restored."""
    site = client(runtime, name)
    model = site.job.model()
    runtime.place(model, CPU)
    state = LoopState(
        model,
        runtime.adapted(site.job.optimizer(model)),
        torch.amp.GradScaler("cpu", enabled=False),
        torch.Generator(),
        torch.zeros(()),
        runtime=runtime,
    )
    store = at_first(runtime, lambda: kept(folder, 2, PLAN.plan_id))
    assert load(store, runtime, state.carry_on)
    return dict(state.carried()[0])


class Lost:
    """Can be neither read nor written."""

    def read(self) -> Saved | None:
        raise StateMissingError("no state")

    def is_due(self) -> bool:
        return True

    def write(self, saved: Saved) -> None:
        raise KeyError("cannot be written")

    def unusable(self, error: Exception) -> Exception:
        return ValueError("it cannot be restored")


class Odd(Lost):
    """Has a state that cannot be restored."""

    def read(self) -> Saved | None:
        return {}, {}


def failures(runtime: Runtime) -> list[str]:
    """Return the errors that this process sees when the first one fails."""
    seen = []

    def nothing() -> Saved:
        return {}, {}

    def restore(saved: Saved) -> None:
        raise KeyError

    for act in (
        lambda: load(at_first(runtime, Lost), runtime, restore),
        lambda: load(at_first(runtime, Odd), runtime, restore),
        lambda: save(at_first(runtime, Lost), runtime, nothing),
    ):
        try:
            act()
        except Exception as error:
            seen.append(type(error).__name__)
    return seen


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")

    def write(name: str, arrays: dict[str, Any], about: dict[str, Any]) -> None:
        if dist.get_rank() == 0:
            write_atomically(folder / f"{name}.safetensors", model_parts(arrays, about))

    for shard in (False, True):
        way, runtime = "fsdp" if shard else "ddp", Ranks(shard)
        for name in SETTINGS:
            own = folder / f"{name}-{way}"
            state = at_first(runtime, lambda own=own: kept(own / "0" / "state", 1))  # type: ignore[misc]
            write(f"{name}-{way}-0", *fit(runtime, name, None, state))
            for last in (1, 2):
                write(f"{name}-{way}-{last}", *continued(own / str(last), runtime, name, last))
            for by, state_of in (("itself", own / "0" / "state"), ("one", folder / name)):
                write(f"{name}-{way}-{by}", carried_again(runtime, name, state_of), {})
        seen: list[Any] = [None] * runtime.size
        dist.all_gather_object(seen, failures(runtime))
        write(f"failures-{way}", {}, {"seen": seen})
    dist.destroy_process_group()


def alone(folder: Path) -> None:
    """Write the state of an optimizer that a single process has used."""
    for name in SETTINGS:
        fit(ONE, name, None, kept(folder / name, 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
