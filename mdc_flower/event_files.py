"""Event files of a run for TensorBoard, written where TensorBoard is installed.

Two folders, because TensorBoard has one count of steps in each: ``rounds``, by the number of the
round, and ``epochs``, by the local work done. They hold what the history holds, and nothing that
sites do not send anyway: how the loss of a site falls from epoch to epoch stands in its own log.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.common import log

from mdc_flower.reports.series import History, work, work_done
from strategies.attendance import Awaited
from strategies.position import Position
from strategies.round_plan import RoundPlan
from strategies.round_record import RoundRecord, RunObserver

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
ROUNDS, EPOCHS = "rounds", "epochs"


@contextmanager
def event_files(run_dir: Path, history: History) -> Iterator[list[RunObserver]]:
    """Give the observer that writes event files into a run directory; none without TensorBoard.

    Parameters
    ----------
    run_dir
        The run directory.
    history
        The rounds that are over: what an earlier process wrote of later ones counts no more.
    """
    if find_spec("tensorboard") is None:
        yield []
        return
    observer = EventFiles(run_dir / FOLDER, len(history), sum(work_done(history)[-1:]))
    try:
        yield [observer]
    finally:
        observer.close()


class EventFiles:
    """Writes scalars of every round; a `RunObserver`.

    On failure it says so once in the log, writes no more, and the run goes on.

    Parameters
    ----------
    folder : Path
        Where the files go.
    rounds_done, work_done : int
        The rounds, and the local epochs (or steps), that are over.
    """

    def __init__(self, folder: Path, rounds_done: int, work_done: int) -> None:
        self._work = work_done
        self._writers: dict[str, SummaryWriter] = {}
        self._failed = False
        self._try(lambda: self._open(folder, {ROUNDS: rounds_done, EPOCHS: work_done}))

    def sites_awaited(self, awaited: Awaited) -> None:
        """Do nothing: a round is written when it is over."""

    def round_started(self, plan: RoundPlan, sites: Iterable[str], kept: Iterable[str]) -> None:
        """Do nothing: a round is written when it is over."""

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        """Do nothing: a round is written when it is over."""

    def round_retried(self, record: RoundRecord, quorum: int) -> None:
        """Do nothing: a round is written when it is over."""

    def round_finished(self, record: RoundRecord, position: Position) -> None:
        """Write the round."""
        self._try(lambda: self._write(record))

    def round_failed(self, record: RoundRecord) -> None:
        """Write the round; if the run goes on, the repeated one takes its place."""
        self._try(lambda: self._write(record))

    def close(self) -> None:
        """Write what is not written yet."""
        for writer in self._writers.values():
            self._try(writer.close)

    def _open(self, folder: Path, done: Mapping[str, int]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for name, steps in done.items():
            # Readers forget the points at this step and after it that are in older files.
            self._writers[name] = SummaryWriter(str(folder / name), purge_step=steps + 1)

    def _write(self, record: RoundRecord) -> None:
        for tag, value in round_scalars(record).items():
            self._writers[ROUNDS].add_scalar(tag, value, record.round)
        for step, scalars in learning_rates(record.plan, self._work):
            for tag, value in scalars.items():
                self._writers[EPOCHS].add_scalar(tag, value, step)
        self._work += work(record.to_dict())
        for writer in self._writers.values():
            writer.flush()

    def _try(self, write: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            write()
        except Exception as error:  # whatever it is, the run is worth more than its curves
            self._failed = True
            log(ERROR, "event files for TensorBoard are written no more: %s", error)


def round_scalars(record: RoundRecord) -> dict[str, float]:
    """Return what is to be drawn of a round, by the name under which it is drawn.

    ``sites-before`` and ``sites-after`` are the sites' scores of the model that the round started
    from and, after the last round, of its own. What a site has sent is under ``site/NAME/``.
    """
    scalars: dict[str, float | None] = {
        "relative-change": record.relative_change,
        "bytes/sent": record.sent_bytes,
        "bytes/received": record.received_bytes,
        "sites/took-part": len(record.participants),
        "sites/dropped": len(record.dropped),
        "sites/missing": len(record.missing),
        "work/local-epochs": record.plan["local_epochs"] or None,
        "work/local-steps": record.plan["local_steps"] or None,
        # A round that failed has no end to be measured.
        "seconds": None if record.failed else record.seconds,
    }
    for metric in ("accuracy", "loss"):
        at_sites = f"validation-{metric}"
        scalars |= {
            f"{metric}/test": record.evaluation.get(f"test-{metric}"),
            f"{metric}/validation": record.evaluation.get(f"validation-{metric}"),
            f"{metric}/sites-before": record.start_evaluation.get(at_sites),
            f"{metric}/sites-after": record.site_evaluation.get(at_sites),
        }
    for site, metrics in record.participants.items():
        scalars |= {f"site/{site}/{name}": value for name, value in metrics.items()}
    return {
        tag: value for tag, value in scalars.items() if value is not None and math.isfinite(value)
    }


def learning_rates(plan: Mapping[str, Any], done: int) -> list[tuple[int, dict[str, float]]]:
    """Return the learning rate at the start and the end of each local epoch of a round.

    It is the round plan's: within an epoch a site sets it anew for every step. A round that is
    counted in steps has one point, at its end, because an epoch is another number of steps at
    every site.

    Parameters
    ----------
    plan
        The round's plan, as it is in its record.
    done
        Local epochs (or steps) before the round.
    """
    one = RoundPlan.model_validate({key: plan[key] for key in RoundPlan.model_fields})
    count = one.local_epochs or 1
    length = 1 if one.local_epochs else one.local_steps
    return [
        (
            done + (index + 1) * length,
            {
                "learning-rate/start": one.lr_at(index / count),
                "learning-rate/end": one.lr_at((index + 1) / count),
            },
        )
        for index in range(count)
    ]
