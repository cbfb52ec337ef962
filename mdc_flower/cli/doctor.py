"""Checks of `mdc doctor`: whether this machine is ready for a run."""

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from mdc_flower.common.cores import usable_cores
from mdc_flower.common.extras import install_command
from mdc_flower.console.checks import Check, guarded
from mdc_flower.data import load_dataset
from mdc_flower.data.cache import cache_dir
from mdc_flower.data.readers.builtin import BUILTIN
from mdc_flower.training.numerics import pick_autocast_dtype, pick_device

PACKAGES = ("flwr", "torch", "torchvision", "numpy", "datasets")

SIMULATION = ("ray", "flwr-datasets", "matplotlib", "scikit-learn", "scipy")
"""Packages of the extra ``simulation``, which a real site does not need."""
MIN_FREE_BYTES = 2 * 1024**3


def run_checks(dataset: str = "", data_root: str = "") -> Iterator[Check]:
    """Yield the checks one by one; with ``dataset``, check that this data set loads."""
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0])
    yield from (_package(name) for name in PACKAGES)
    yield from (_optional(name) for name in SIMULATION)
    yield from (_command(name) for name in ("flwr", "flower-superlink", "flower-supernode"))
    yield guarded("loopback port", _port)
    yield guarded("cache folder", _cache)
    device = pick_device("auto")
    dtype = pick_autocast_dtype("auto", device)
    yield Check("device", None, f"{device}, computes in {dtype or torch.float32}")
    yield Check("cores", None, str(usable_cores()))
    if dataset or find_spec("sklearn"):
        name = dataset or "digits"
        yield guarded(f"data set {name}", lambda: _data(name, data_root))
    if not dataset:
        yield Check("other data sets", None, ", ".join(n for n in BUILTIN if n != "digits"))


def _package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed")


def _optional(name: str) -> Check:
    found = _package(name)
    hint = f"not installed; simulations need it: {install_command('simulation')}"
    return found if found.ok else Check(name, None, hint)


def _command(name: str) -> Check:
    bin_dir = str(Path(sys.executable).parent)
    path = shutil.which(name, path=os.pathsep.join([bin_dir, os.environ.get("PATH", "")]))
    return Check(f"command {name}", path is not None, path or f"not found in {bin_dir} or on PATH")


def _port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"can be opened ({probe.getsockname()[1]})"


def _cache() -> str:
    folder = cache_dir()
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise OSError(f"{folder}: only {free / 1024**3:.1f} GiB free, 2 are needed")
    return f"{folder}, {free / 1024**3:.0f} GiB free"


def _data(name: str, data_root: str) -> str:
    data = load_dataset(name, data_root)
    return (
        f"{len(data.train)} training and {len(data.test)} test examples of shape "
        f"{data.input_shape}, {data.num_classes} classes"
    )
