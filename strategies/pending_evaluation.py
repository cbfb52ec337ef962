"""The coordinator evaluates the model of one round while the sites train the next.

A round is safe once its checkpoint is written; only its line in the history waits for the
evaluation. There is at most one evaluation at a time: a round's is over before the next round is
folded. Everything but the evaluation itself happens in the thread of the round loop.

On failure: what an evaluation raises ends the run, as soon as the round loop looks. The checkpoint
says that the round is not finished, so a run that goes on evaluates its model again.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from flwr.app import ArrayRecord, Message, MetricRecord

from strategies.storage.round_record import RoundRecord

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
"""Evaluates the global model of a round."""

P = ParamSpec("P")
T = TypeVar("T")


class Inline(Executor):
    """Makes a call at once, in the thread that submits it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Return the result, or raise what the call raises."""
        outcome: Future[T] = Future()
        outcome.set_result(fn(*args, **kwargs))
        return outcome


@contextmanager
def one_thread() -> Iterator[Executor]:
    """Give an executor that makes one call at a time, in a thread of its own."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluation")
    try:
        yield executor
    finally:
        # A call that still runs is that of a run that failed: nobody needs its result.
        executor.shutdown(wait=False)


class PendingEvaluation:
    """The evaluation of the newest model, and the record of the round that waits for it.

    Parameters
    ----------
    evaluate : EvaluateFn or None
        Evaluates a model; None where nobody does.
    executor : Executor
        Where it runs.
    finish : callable
        Called with a round's record and the metrics of its model, in the thread that looks.
    """

    def __init__(
        self,
        evaluate: EvaluateFn | None,
        executor: Executor,
        finish: Callable[[RoundRecord, MetricRecord | None], None],
    ) -> None:
        self._evaluate = evaluate or (lambda number, arrays: None)
        self._executor = executor
        self._finish = finish
        self._pending: tuple[RoundRecord, Future[MetricRecord | None]] | None = None

    def begin(self, record: RoundRecord, arrays: ArrayRecord) -> None:
        """Begin to evaluate the model of a round; the round before is finished."""
        outcome = self._executor.submit(self._evaluate, record.round, arrays)
        self._pending = record, outcome

    def look(self) -> None:
        """Finish the round if its evaluation is over."""
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait until the evaluation is over, and finish the round."""
        if self._pending is not None:
            record, outcome = self._pending
            metrics = outcome.result()
            self._pending = None
            self._finish(record, metrics)

    def over_after(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies of the next round, and then wait: what follows is its fold."""
        yield from replies
        self.wait()
