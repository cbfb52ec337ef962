"""The processes that jobs run in, and how they end.

Imports nothing that is slow to import: a new process must ignore interrupts before it loads what it
computes with.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from mdc_flower.common.cores import usable_cores

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the GPUs that a process sees; it numbers them anew, from 0."""


@contextmanager
def worker_pool(
    count: int | None = None, gpus: Sequence[str] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield processes, one per core by default; an error or an interrupt in the block ends them.

    They end at once, whatever they are doing: what they write is written whole or not at all.

    Parameters
    ----------
    count
        Processes; None for one per core.
    gpus
        As in ``CUDA_VISIBLE_DEVICES``. The processes take them in turn: each sees one, which is
        its device ``cuda``. Empty to let every process see what this one sees.
    """
    others = set(active_children())
    context = get_context("spawn")
    pool = ProcessPoolExecutor(
        count or usable_cores(), context, _begin, (context.Value("i", 0), tuple(gpus))
    )
    try:
        yield pool
    except BaseException:
        for process in set(active_children()) - others:
            process.terminate()
        # Only the pool's thread waits for them: of two that do, one may not see that they ended.
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _begin(started: Any, gpus: Sequence[str]) -> None:
    """Prepare a process of the pool, before it loads what it computes with."""
    # A terminal sends Ctrl-C to all processes: the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpus:
        with started.get_lock():
            number, started.value = started.value, started.value + 1
        os.environ[VISIBLE_GPUS] = gpus[number % len(gpus)]
