"""Device, number format, threads and random state: what decides speed, and if bits repeat."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from strategies.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the first GPU if there is one.

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

    ``auto`` is bfloat16 where the processor or GPU computes with it, float32 elsewhere.
    Weights, their averages and everything sent are float32 in any case.
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


@contextmanager
def repeatable(num_threads: int) -> Iterator[None]:
    """Run with a fixed number of CPU threads and repeatable GPU kernels; restore after.

    Sums are split over threads, so another number of threads gives other bits.
    """
    threads = torch.get_num_threads()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    torch.set_num_threads(num_threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block, and give them their own states back after.

    They are those of Python's `random`, of numpy and of torch on every device: a model may draw
    from any of them when it is built, or in its forward pass.

    Parameters
    ----------
    seed
        In [0, 2**63), as `strategies.seeds.derive_seed` returns it.
    """
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # it takes no more bits
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
