"""TensorBoard event files of a run, written if TensorBoard is installed.

There are two folders, because TensorBoard has one step counter per folder: ``rounds`` counts
rounds, and ``epochs`` counts the local work done. They contain only data of the history, which the
sites send anyway; a site's loss from epoch to epoch is in the site's own log.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdc_flower.reports.series import History, work
from strategies.common.log import log
from strategies.method.round_plan import RoundPlan
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord, RunObserver

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
ROUNDS, EPOCHS = "rounds", "epochs"


@contextmanager
def event_files(run_dir: Path, history: History) -> Iterator[list[RunObserver]]:
    """Yield the observer that writes event files into a run directory; none without TensorBoard.

    Events of an earlier process about rounds that are not in the history are dropped.
    """
    if find_spec("tensorboard") is None:
        yield []
        return
    files = EventFiles(run_dir / FOLDER, len(history), sum(map(work, history)))
    try:
        yield [files]
    finally:
        files.close()


class EventFiles:
    """A `RunObserver` that writes the scalars of every round after ``rounds_done``.

    If writing fails, it logs the error once and stops writing; the run continues.
    """

    def __init__(self, folder: Path, rounds_done: int, work_done: int) -> None:
        self._work = work_done
        self._writers: dict[str, SummaryWriter] = {}
        with self._until_it_fails():
            from torch.utils import tensorboard

            for name, done in ((ROUNDS, rounds_done), (EPOCHS, work_done)):
                # Readers drop the events of older files from this step on.
                writer = tensorboard.SummaryWriter(str(folder / name), purge_step=done + 1)
                self._writers[name] = writer

    def round_started(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a round is written when it ends."""

    sites_awaited = site_answered = round_retried = round_folded = round_started

    def round_finished(self, record: RoundRecord, position: Position) -> None:
        """Write the round."""
        self._write(record)

    def round_failed(self, record: RoundRecord) -> None:
        """Write the round; if the run continues, the repeated round replaces it."""
        self._write(record)

    def close(self) -> None:
        """Close the files."""
        with self._until_it_fails():
            for writer in self._writers.values():
                writer.close()

    def _write(self, record: RoundRecord) -> None:
        points = [(ROUNDS, record.round, round_scalars(record))]
        points += [(EPOCHS, *rates) for rates in learning_rates(record.plan, self._work)]
        self._work += work(record.to_dict())
        with self._until_it_fails():
            for name, step, scalars in points if self._writers else ():
                for tag, value in scalars.items():
                    self._writers[name].add_scalar(tag, value, step)
            for writer in self._writers.values():
                writer.flush()

    @contextmanager
    def _until_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # no error here may end the run
            self._writers = {}
            log(ERROR, "writing event files for TensorBoard stopped: %s", error)


def round_scalars(record: RoundRecord) -> dict[str, float]:
    """Return the scalars of a round by tag, without those that are unknown or not finite.

    ``sites-before`` has the sites' scores of the model from which the round started;
    ``sites-after`` has their scores of the round's own model, after the last round only. The
    metrics that a site has sent are under ``site/NAME/``.
    """
    scalars = {
        "relative-change": record.relative_change,
        "bytes/sent": record.sent_bytes,
        "bytes/received": record.received_bytes,
        "sites/took-part": len(record.participants),
        "sites/dropped": len(record.dropped),
        "sites/missing": len(record.missing),
        "work/local-epochs": record.plan["local_epochs"] or None,
        "work/local-steps": record.plan["local_steps"] or None,
        "seconds": None if record.failed else record.seconds,  # a failed round has no end
    }
    for metric in ("accuracy", "loss"):
        scalars[f"{metric}/test"] = record.evaluation.get(f"test-{metric}")
        scalars[f"{metric}/validation"] = record.evaluation.get(f"validation-{metric}")
        scalars[f"{metric}/sites-before"] = record.start_evaluation.get(f"validation-{metric}")
        scalars[f"{metric}/sites-after"] = record.site_evaluation.get(f"validation-{metric}")
    for split in ("test", "validation"):
        scalars[f"balanced-accuracy/{split}"] = record.evaluation.get(f"{split}-balanced-accuracy")
    for site, metrics in record.participants.items():
        scalars |= {f"site/{site}/{name}": value for name, value in metrics.items()}
    return {
        tag: value for tag, value in scalars.items() if value is not None and math.isfinite(value)
    }


def learning_rates(plan: Mapping[str, Any], done: int) -> list[tuple[int, dict[str, float]]]:
    """Return the learning rate at both ends of each local epoch, with the work done by then.

    A round that is counted in steps has one point, at its end, because the number of steps per
    epoch differs between sites.
    """
    valid = RoundPlan.model_validate({key: plan[key] for key in RoundPlan.model_fields})
    parts = valid.local_epochs or 1
    return [
        (
            done + part * (valid.local_steps or 1),
            {
                "learning-rate/start": valid.lr_at((part - 1) / parts),
                "learning-rate/end": valid.lr_at(part / parts),
            },
        )
        for part in range(1, parts + 1)
    ]
