"""`Tracker`: passes the numbers of each round to one tracking library."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mdc_flower.config import RunConfig
from mdc_flower.coordinator.trackers.scalars import learning_rates, round_scalars
from mdc_flower.reports.series import work
from strategies.common.log import log
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord

ROUNDS, EPOCHS = "rounds", "epochs"
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

    def close(self) -> None:
        """End the run in the tracker."""
        ...


NewSink = Callable[[Start], Sink]


class Tracker:
    """A `RunObserver` that writes the numbers of every round.

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
        self._sink: Sink | None = None
        with self._until_it_fails():
            self._sink = new_sink(start)

    def round_started(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a round is written when it ends."""

    sites_awaited = site_answered = round_retried = round_folded = round_started

    def round_finished(self, record: RoundRecord, position: Position) -> None:
        """Write the round."""
        self._write(record)

    def round_failed(self, record: RoundRecord) -> None:
        """Write the round; if the run continues, the repeated round is written too."""
        self._write(record)

    def close(self) -> None:
        """Close the sink."""
        with self._until_it_fails():
            if self._sink is not None:
                self._sink.close()

    def _write(self, record: RoundRecord) -> None:
        rates = learning_rates(record.plan, self._work)
        self._work += work(record.to_dict())
        with self._until_it_fails():
            if self._sink is not None:
                self._sink.write(ROUNDS, record.round, round_scalars(record))
                for step, scalars in rates:
                    self._sink.write(EPOCHS, step, scalars)
                self._sink.flush()

    @contextmanager
    def _until_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # no error here may end the run
            self._sink = None
            log(ERROR, "tracking with %s stopped: %s", self._name, error)


def remembered(path: Path, new: Callable[[], str]) -> str:
    """Return the id in a file of the run directory; write a new one if there is none.

    A resumed run continues under the id that it had before.
    """
    if not path.is_file():
        path.write_text(new())
    return path.read_text()
