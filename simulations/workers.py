"""The processes that jobs run in, and how they end.

Imports nothing that is slow to import: a new process must ignore interrupts before it loads what it
computes with.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context


@contextmanager
def worker_pool(count: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Yield processes, one a core by default; an error or an interrupt in the block ends them.

    They end at once, whatever they are doing: what they write is written whole or not at all.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(
        count or len(os.sched_getaffinity(0)), get_context("spawn"), _leave_interrupts_to_parent
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


def _leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes: the parent ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
