"""The pool of processes: at an interruption nothing of it is left, however long it would take."""

import signal
import time
from multiprocessing import active_children

import pytest

from simulations.workers import worker_pool

LONG_S = 60.0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_an_interrupt_ends_the_processes_at_once(kind: type[BaseException]) -> None:
    before = active_children()
    started = time.monotonic()
    with pytest.raises(kind), worker_pool(2) as pool:  # noqa: PT012
        running = [pool.submit(time.sleep, LONG_S) for _ in range(4)]
        assert len(active_children()) > len(before)
        raise kind
    assert time.monotonic() - started < LONG_S / 2
    assert active_children() == before
    assert all(future.done() for future in running[2:]), "what had not begun never does"


def test_workers_leave_ctrl_c_to_the_parent_and_still_end_when_told() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
        assert pool.submit(signal.getsignal, signal.SIGTERM).result() == signal.SIG_DFL
