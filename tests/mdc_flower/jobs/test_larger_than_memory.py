"""Training on data ten times larger than the memory that the process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]

LAB = """
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from mdc_flower.config import read_run_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.regression import regression
from strategies.storage.run_directory import read_history

RECORD = 1_000_000
LIMIT = 150 * RECORD


class Records(Dataset):
    def __init__(self, path):
        self.path, self.count = path, Path(path).stat().st_size // RECORD

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        with open(self.path, "rb") as file:
            file.seek(row * RECORD)
            record = np.frombuffer(file.read(RECORD), np.uint8)
        value = torch.tensor([float(record.mean())])
        return value, value


class Stream(IterableDataset):
    def __init__(self, path):
        self.records = Records(path)

    def __iter__(self):
        return (self.records[row] for row in range(len(self.records)))


def stream(context):
    return regression(lambda: nn.Linear(1, 1), train=Stream(context.data), batch_size=10)


def read_when_needed(context):
    return regression(lambda: nn.Linear(1, 1), train=Records(context.data), batch_size=10)


def read_at_once(context):
    whole = np.fromfile(context.data, np.uint8)
    return regression(lambda: nn.Linear(1, 1), train=Records(context.data), batch_size=len(whole))


def small(context):
    few = torch.zeros(40, 1)
    return regression(lambda: nn.Linear(1, 1), train=torch.utils.data.TensorDataset(few, few))


def used():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmData" in l)
    return 1024 * int(line.split()[1])


def run(job, data, output, keys):
    names = {"job": f"larger_lab:{job}", "dataset": data, "output-dir": f"{output}-{job}"}
    run_in_process(read_run_config({**names, "num-sites": 1, **keys}), 1)
    lines = read_history(Path(f"{output}-{job}"))
    return sum(line["participants"]["site-0"]["num-steps"] for line in lines)


if __name__ == "__main__":
    data, output, *jobs = sys.argv[1:]
    steps = {"epochs": "fixed", "local-steps": 50, "num-rounds": 3, "epoch-budget": 0}
    epochs = {"epochs": "fixed", "local-epochs": 1, "epoch-budget": 1}
    # A first run starts threads and fills caches, which need memory whatever the data.
    run("small", data, output, epochs)
    resource.setrlimit(resource.RLIMIT_DATA, (used() + LIMIT, used() + LIMIT))
    for job in jobs:
        print("steps:", run(job, data, output, steps if job == "stream" else epochs))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 1.5 GB that takes no space on the disk."""
    path = tmp_path_factory.mktemp("data") / "records"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1_500_000_000)
    return path


def trained(data: Path, folder: Path, *jobs: str) -> "subprocess.CompletedProcess[str]":
    (folder / "larger_lab.py").write_text(LAB)
    path = os.pathsep.join([str(ROOT), str(folder)])
    return subprocess.run(
        [sys.executable, "larger_lab.py", str(data), str(folder / "run"), *jobs],
        cwd=folder, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def test_a_process_with_a_tenth_of_the_datas_size_trains_on_all_of_it(
    data: Path, tmp_path: Path
) -> None:
    done = trained(data, tmp_path, "stream", "read_when_needed")
    assert done.returncode == 0, done.stderr
    # 150 batches of 10 MB each
    assert [line for line in done.stdout.splitlines() if "steps" in line] == ["steps: 150"] * 2


def test_data_that_are_read_at_once_do_not_fit(data: Path, tmp_path: Path) -> None:
    done = trained(data, tmp_path, "read_at_once")
    assert done.returncode != 0
    assert "MemoryError" in done.stderr
