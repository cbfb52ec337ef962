"""Where a result comes from: command, date, hardware, versions."""

import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mdc_flower.common.cores import usable_cores
from mdc_flower.training.numerics import CPU, number_format, pick_autocast_dtype, processor

PACKAGES = ("mdc-flower", "flwr", "torch", "torchvision", "torchaudio", "timm", "numpy")
"""Distributions whose versions may change a result; those that are installed are named."""


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as one would type it; where the data are is the machine's own affair."""
    words = [Path(arguments[0]).name, *arguments[1:]]
    return " ".join(
        "data-root=DATA" if word.startswith("data-root=") else shlex.quote(word) for word in words
    )


def provenance() -> dict[str, Any]:
    """Return date, command, hardware and versions of this process."""
    return {
        "command": command_line(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": versions(),
    }


def hardware() -> str:
    """Return what computes here: cores that may be used, processor, and GPUs.

    With the processor stand its vector instructions and the dtype that ``precision = "auto"`` is on
    it: one name is sold with and without bfloat16, which are other bits and other seconds.
    """
    cores = usable_cores()
    dtype = number_format(pick_autocast_dtype("auto", CPU))
    kind = f"{torch.backends.cpu.get_cpu_capability()}, {dtype}"
    parts = [f"{cores} {'core' if cores == 1 else 'cores'} of {processor()} ({kind})"]
    parts += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(parts)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def joined(values: Iterable[str]) -> str:
    """Return the different values in one line, where a result comes from several processes."""
    return "; ".join(sorted(set(values)))


def joined_versions(all_versions: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return of each package all versions that occur."""
    by_package: dict[str, list[str]] = {}
    for one in all_versions:
        for package, number in one.items():
            by_package.setdefault(package, []).append(number)
    return {package: joined(numbers) for package, numbers in by_package.items()}
