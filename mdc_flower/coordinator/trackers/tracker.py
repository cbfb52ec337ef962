"""`Tracker`: passes the numbers of each round to one tracking library."""

from collections.abc import Callable, Mapping
from logging import ERROR
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple, Protocol

from mdc_flower.config import RunConfig
from mdc_flower.coordinator.trackers.scalars import learning_rates, round_scalars
from mdc_flower.reports.series import units
from strategies.common.log import log
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord

CLOSE_S = 60.0
"""Longest wait at the end of a run, in seconds."""

ROUNDS, WORK = "rounds", "work"
"""The two axes: numbers of rounds, and units of local work done."""


class Start(NamedTuple):
    """Where tracking starts: the run directory, its config, and what is done already."""

    run_dir: Path
    config: RunConfig
    rounds_done: int
    work_done: int


class Sink(Protocol):
    """Writes numbers with one tracking library."""

    def write(self, axis: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers at a step of an axis."""
        ...

    def flush(self) -> None:
        """Let readers see what was written."""
        ...

    def close(self, has_finished: bool) -> None:
        """End the run in the tracker; it may have failed."""
        ...


NewSink = Callable[[Start], Sink]


class Tracker:
    """A `RunObserver` that writes the numbers of every round.

    A thread of its own writes them, because a tracking server may take minutes to answer, and the
    round loop must not wait for it.

    Parameters
    ----------
    name : str
        Name of the library, for messages.
    new_sink : callable
        Returns the sink.
    start : Start
        Where to start.
    """

    def __init__(self, name: str, new_sink: NewSink, start: Start) -> None:
        self._name = name
        self._work = start.work_done
        self._calls: Queue[Callable[[Sink], None] | None] = Queue()
        self._has_finished = False
        self._thread = Thread(target=self._serve, args=(new_sink, start), daemon=True)
        self._thread.start()

    def round_started(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a round is written when it ends."""

    sites_awaited = site_answered = round_retried = round_folded = round_started

    def round_finished(self, record: RoundRecord, position: Position) -> None:
        """Write the round."""
        self._write(record)

    def round_failed(self, record: RoundRecord) -> None:
        """Write the round; if the run continues, the repeated round is written too."""
        self._write(record)

    def close(self, has_finished: bool) -> None:
        """Write what is left, and close the sink; give up after `CLOSE_S` seconds."""
        self._has_finished = has_finished
        self._calls.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log(ERROR, "tracking with %s has not ended within %g s", self._name, CLOSE_S)

    def _write(self, record: RoundRecord) -> None:
        points = [(ROUNDS, record.round, round_scalars(record))]
        points += [(WORK, *rates) for rates in learning_rates(record.plan, self._work)]
        self._work += units(record.to_dict())

        def write(sink: Sink) -> None:
            for point in points:
                sink.write(*point)
            sink.flush()

        self._calls.put(write)

    def _serve(self, new_sink: NewSink, start: Start) -> None:
        """Make the sink and serve the queue; the first error ends both."""
        sink: Sink | None = None
        try:
            sink = new_sink(start)
            while call := self._calls.get():
                call(sink)
        except Exception as error:  # no error here may end the run
            log(ERROR, "tracking with %s stopped: %s", self._name, error)
        if sink is not None:
            try:
                sink.close(self._has_finished)
            except Exception as error:
                log(ERROR, "closing %s failed: %s", self._name, error)


def remembered(path: Path, new: Callable[[], str]) -> str:
    """Return the id in a file of the run directory; write a new one if there is none.

    A resumed run continues under the id that it had before.
    """
    if not path.is_file():
        path.write_text(new())
    return path.read_text()


def shown(config: RunConfig) -> dict[str, Any]:
    """Return the run config by key, without paths of this machine."""
    paths = {"data-root", "output-dir", "vocabulary"}
    return {key: value for key, value in config.to_flower().items() if key not in paths}
