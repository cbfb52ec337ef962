"""Provenance of a result: command, date, hardware and versions."""

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
"""Distributions whose versions may change a result; only installed ones are recorded."""


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as typed, with the value of ``data-root`` replaced by ``DATA``."""
    words = [Path(arguments[0]).name, *arguments[1:]]
    return " ".join(
        "data-root=DATA" if word.startswith("data-root=") else shlex.quote(word) for word in words
    )


def provenance() -> dict[str, Any]:
    """Return the command, date, hardware and versions of this process."""
    return {
        "command": command_line(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": versions(),
    }


def hardware() -> str:
    """Return the usable cores, the processor and the GPUs of this machine.

    The processor's vector instructions and the dtype chosen by ``precision = "auto"`` are included:
    processors of one name exist with and without bfloat16, which changes results and times.
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
    """Join the distinct values of several processes in one line."""
    return "; ".join(sorted(set(values)))


def joined_versions(all_versions: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return all distinct versions of each package."""
    by_package: dict[str, list[str]] = {}
    for one in all_versions:
        for package, number in one.items():
            by_package.setdefault(package, []).append(number)
    return {package: joined(numbers) for package, numbers in by_package.items()}
