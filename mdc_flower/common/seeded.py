"""Seed the global random generators inside a block."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block, and restore their states afterwards.

    These are the generators of Python's `random`, of numpy, and of torch on every device. A model
    may draw from any of them when it is built, or in its forward pass.

    Parameters
    ----------
    seed
        In [0, 2**63), as `strategies.common.seeds.derive_seed` returns it.
    """
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # numpy takes 32 bits
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
