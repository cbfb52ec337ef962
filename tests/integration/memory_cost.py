"""Measure the memory of coordinator and site with a large model, between real processes.

One site trains a model of equal square matrices for some rounds. The memory of a process is what
it cannot give back: not its maps of files, and only its part of shared memory. Linux only. Run it
with ``python -m tests.integration.memory_cost``.
"""

import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.regression import regression
from mdc_flower.jobs.torch_job import TorchJob
from tests.integration.real_sites import real_sites

WIDTH = 4096
MATRIX_MB = 4 * WIDTH**2 / 1e6
NUM_MATRICES = "MDC_BENCH_MATRICES"
"""Environment variable with the size of the model, for the processes of the federation."""

LOOK_S = 0.25

ROLES = {
    "forkserver": "ClientApp",
    "coordinator.superlink": "SuperLink",
    "flwr-serverapp": "coordinator",
    "site.supernode": "SuperNode",
    "site.superexec": "SuperExec",
    "site.worker": "worker",
    "mdc site start": "mdc site start",
    "coordinator run": "mdc coordinator run",
}
"""What a process does, by the first part that its command line has."""


class Matrices(nn.Module):
    """A chain of square matrices."""

    def __init__(self) -> None:
        super().__init__()
        count = int(os.environ[NUM_MATRICES])
        self.matrices = nn.ParameterList(torch.zeros(WIDTH, WIDTH) for _ in range(count))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one number per example."""
        for matrix in self.matrices:
            inputs = inputs + inputs @ matrix
        return inputs.mean(1, keepdim=True)


def job(context: JobContext) -> TorchJob:
    """Return the regression of eight random vectors."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(8, WIDTH, generator=generator), torch.randn(8, 1, generator=generator)
    )
    return regression(
        model=Matrices, train=data, validation=data, batch_size=4,
        optimizer=lambda model: torch.optim.SGD(model.parameters()),
    )  # fmt: skip


@contextmanager
def peaks(folder: Path) -> Iterator[dict[str, float]]:
    """Fill the yielded mapping with the largest memory of a process of each role, in bytes."""
    found: dict[str, float] = defaultdict(float)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_S):
            for role, size in _sizes(folder).items():
                found[role] = max(found[role], size)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _sizes(folder: Path) -> dict[str, float]:
    """Return each role's largest process, in bytes, of those whose FLWR_HOME is in a folder."""
    sizes: dict[str, float] = defaultdict(float)
    for process in psutil.process_iter():
        try:
            if not process.environ().get("FLWR_HOME", "").startswith(str(folder)):
                continue
            command = " ".join(process.cmdline())
            role = next((role for part, role in ROLES.items() if part in command), "others")
            sizes[role] = max(sizes[role], _memory(process.pid))
        except (psutil.Error, ProcessLookupError):  # it has just ended
            continue
    return sizes


def _memory(pid: int) -> int:
    """Return the bytes of a process that are no pages of files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kept = [line.split() for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return 1024 * sum(int(size) for _, size, _ in kept)


def bench_memory(matrices: int, rounds: int) -> str:
    """Return a sentence with the peaks by role."""
    with tempfile.TemporaryDirectory(prefix="mdc-bench-") as name:
        folder = Path(name).resolve()
        reference = f"{Path(__file__).parent.name}.{Path(__file__).stem}"
        with real_sites(
            folder,
            num_sites=1,
            job=f"tests.{reference}:job",
            variables={NUM_MATRICES: str(matrices)},
        ) as sites:
            sites.start_coordinator()
            sites.start_site("site-0")
            keys = {
                "epochs": "fixed", "local-epochs": 1, "epoch-budget": rounds, "min-sites": 1,
                "lr-max": 0.001, "round-deadline-s": 3600,
            }  # fmt: skip
            with peaks(folder) as found:
                sites.run(folder / "run", keys, timeout_s=3600.0)
    by_role = ", ".join(f"{role} {size / 1e6:.0f} MB" for role, size in sorted(found.items()))
    return (
        f"peak memory with a model of {matrices * MATRIX_MB:.0f} MB, one site, {rounds} rounds: "
        f"{by_role}"
    )


def main(matrices: int = 15, rounds: int = 2) -> None:
    """Print the peaks of memory by role."""
    typer.echo(bench_memory(matrices, rounds))


if __name__ == "__main__":
    typer.run(main)
