"""Worker processes for jobs, and how they are stopped.

This module imports nothing slow: a new process must ignore interrupts before it imports PyTorch.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from mdc_flower.common.cores import usable_cores
from strategies.common.errors import EngineError

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the GPUs visible to a process, which numbers them from 0."""

IF_DEAD = "It may have been killed for lack of memory; fewer --workers need less"
"""What to do if a process of the pool died."""


@contextmanager
def worker_pool(
    count: int | None = None, gpus: Sequence[str] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes; terminate them if the block raises or is interrupted.

    Terminating them at once is safe because they write files atomically.

    Parameters
    ----------
    count
        Number of processes; None for one per core.
    gpus
        GPUs in the notation of ``CUDA_VISIBLE_DEVICES``, assigned to the processes in turn: each
        process sees one GPU as its device ``cuda``. If empty, every process sees the same GPUs as
        this one.

    Raises
    ------
    EngineError
        If a process died.
    """
    others = set(active_children())
    context = get_context("spawn")
    pool = ProcessPoolExecutor(
        count or usable_cores(), context, _begin, (context.Value("i", 0), tuple(gpus))
    )
    try:
        yield pool
    except BaseException as error:
        for process in set(active_children()) - others:
            process.terminate()
        # Only the pool's thread waits for them: with two waiters, one may miss that they ended.
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise EngineError("a worker process died", hint=IF_DEAD) from None
        raise
    pool.shutdown()


def _begin(started: Any, gpus: Sequence[str]) -> None:
    """Prepare a process of the pool before it imports PyTorch."""
    # A terminal sends Ctrl-C to all processes; the parent terminates this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpus:
        with started.get_lock():
            number, started.value = started.value, started.value + 1
        os.environ[VISIBLE_GPUS] = gpus[number % len(gpus)]
