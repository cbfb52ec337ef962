"""Device, number format and threads, which decide speed and reproducibility."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic as _deterministic

from strategies.common.errors import ConfigError

CPU = torch.device("cpu")

deterministic: Any = _deterministic
"""The module as `Any`, because its type lacks ``fill_uninitialized_memory``."""

CPU_INFO = Path("/proc/cpuinfo")


def pick_device(name: str) -> torch.device:
    """Return the device with this name; ``auto`` is the first GPU if there is one.

    Raises
    ------
    ConfigError
        If there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"this machine has no such device: {str(error).splitlines()[0]}",
            where="device",
            got=name,
            expected="auto, cpu, cuda or cuda:N",
        ) from None
    return device


def pick_autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of forward and backward passes; None for float32.

    ``auto`` is bfloat16 if the processor or GPU supports it, float32 otherwise. Weights, their
    averages and all sent arrays are always float32.
    """
    match precision:
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case "auto" if _computes_in_bf16(device):
            return torch.bfloat16
    return None


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    abilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def number_format(dtype: torch.dtype | None) -> str:
    """Return the name of an autocast dtype, such as ``bfloat16``; None is ``float32``."""
    return str(dtype or torch.float32).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """Return the product name of a device, such as ``NVIDIA H100``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor() if device.type == "cpu" else str(device)


def processor() -> str:
    """Return the processor's name."""
    # platform.processor() is empty on Linux.
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def repeatable(num_threads: int, device: torch.device = CPU) -> Iterator[None]:
    """Use a fixed number of CPU threads and reproducible GPU kernels inside the block.

    Sums are split over threads, so a different number of threads gives different bits. On a GPU:

    - cuDNN uses deterministic kernels, without choosing one by benchmark.
    - PyTorch uses deterministic implementations (`torch.use_deterministic_algorithms`), and fills
      uninitialized memory. An operation without a deterministic implementation gives a warning.
    - cuBLAS gets a workspace of fixed size, unless ``CUBLAS_WORKSPACE_CONFIG`` is set.
    - TF32 is off, in matrix products and in convolutions.

    Parameters
    ----------
    num_threads
        Number of CPU threads, >= 1.
    device
        Device on which the block computes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with _repeatable_gpu() if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _repeatable_gpu() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    mode = torch.get_deterministic_debug_mode()
    fill = deterministic.fill_uninitialized_memory
    # cuBLAS reads it once per process, at its first computation.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn.deterministic, cudnn.benchmark = True, False
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    torch.set_deterministic_debug_mode("warn")
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = fill
