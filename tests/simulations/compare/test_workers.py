"""The pool of processes: at an interruption nothing of it is left, however long it would take."""

import os
import signal
import time
from multiprocessing import active_children

import pytest

from simulations.compare.workers import VISIBLE_GPUS, worker_pool
from strategies.common.errors import EngineError

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


def test_a_dead_process_is_an_error_with_a_hint() -> None:
    with (
        pytest.raises(EngineError, match="a worker process died") as caught,
        worker_pool(1) as pool,
    ):
        pool.submit(os._exit, 1).result()
    assert "lack of memory" in caught.value.hint


def process_and_gpus() -> tuple[int, str | None]:
    time.sleep(0.05)  # so that each process gets a job
    return os.getpid(), os.environ.get(VISIBLE_GPUS)


def test_the_processes_take_the_gpus_in_turn() -> None:
    seen: dict[int, str | None] = {}
    with worker_pool(3, ["0", "GPU-b"]) as pool:
        while len(seen) < 3:
            jobs = [pool.submit(process_and_gpus) for _ in range(6)]
            seen |= dict(job.result() for job in jobs)
    assert sorted(map(str, seen.values())) == ["0", "0", "GPU-b"]


def test_without_gpus_the_processes_see_what_their_parent_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VISIBLE_GPUS, "7")
    with worker_pool(1) as pool:
        assert pool.submit(os.getenv, VISIBLE_GPUS).result() == "7"


def test_workers_leave_ctrl_c_to_the_parent_and_still_end_when_told() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
        assert pool.submit(signal.getsignal, signal.SIGTERM).result() == signal.SIG_DFL
