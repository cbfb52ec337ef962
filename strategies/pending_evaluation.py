"""Evaluates the model of one round at the coordinator while the sites train the next round.

A round is safe once its checkpoint is written; only its line in the history waits for the
evaluation. At most one evaluation runs at a time. It begins when the messages of the next round
have been sent, because both need memory for copies of the model, and ends before the updates of
that round are averaged. Everything except the evaluation itself happens in the thread of the round
loop.

An exception in an evaluation ends the run as soon as the round loop polls. The checkpoint marks the
round as not finished, so a resumed run evaluates its model again.
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
    """Executor that runs each call at once, in the submitting thread."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Return a finished future; an exception of the call is raised here."""
        outcome: Future[T] = Future()
        outcome.set_result(fn(*args, **kwargs))
        return outcome


@contextmanager
def one_thread() -> Iterator[Executor]:
    """Yield an executor that runs one call at a time, in its own thread."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluation")
    try:
        yield executor
    finally:
        # A call still running here belongs to a failed run, so its result is not needed.
        executor.shutdown(wait=False)


class PendingEvaluation:
    """The running evaluation of the newest model, and the record of its round.

    Parameters
    ----------
    evaluate : EvaluateFn or None
        Evaluates a model; None for no evaluation.
    executor : Executor
        Runs the evaluation.
    finish : callable
        Called with a round's record and the metrics of its model, in the thread that calls `poll`,
        `go_on` or `wait`.
    """

    def __init__(
        self,
        evaluate: EvaluateFn | None,
        executor: Executor,
        finish: Callable[[RoundRecord, MetricRecord | None], None],
    ) -> None:
        self._evaluate = evaluate
        self._executor = executor
        self._finish = finish
        self._begun: tuple[RoundRecord, Callable[[], MetricRecord | None]] | None = None
        self._outcome: Future[MetricRecord | None] | None = None

    def begin(self, record: RoundRecord, arrays: Callable[[], ArrayRecord]) -> None:
        """Take the model of a round for evaluation; the previous round must be finished.

        `Inline` evaluates it now, another executor once `go_on` or `wait` is called. ``arrays``
        returns the model, and is called in the executor.
        """
        evaluate = self._evaluate

        def outcome() -> MetricRecord | None:
            return evaluate(record.round, arrays()) if evaluate else None

        self._begun = record, outcome
        if isinstance(self._executor, Inline):
            self._submit(outcome)

    def go_on(self) -> None:
        """Start the evaluation if it has not started; finish the round if it is complete."""
        if self._begun is not None and self._outcome is None:
            self._submit(self._begun[1])
        self.poll()

    def poll(self) -> None:
        """Finish the round if its evaluation is complete."""
        if self._outcome is not None and self._outcome.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the evaluation to complete, then finish the round."""
        if self._begun is None:
            return
        record, outcome = self._begun
        metrics = (self._outcome or self._submit(outcome)).result()
        self._begun = self._outcome = None
        self._finish(record, metrics)

    def _submit(self, outcome: Callable[[], MetricRecord | None]) -> Future[MetricRecord | None]:
        self._outcome = self._executor.submit(outcome)
        return self._outcome

    def wait_after(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies of the next round, then wait, so that averaging comes afterwards."""
        yield from replies
        self.wait()
