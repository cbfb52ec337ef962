"""TensorBoard event files in the run directory.

There are two folders, because TensorBoard has one step counter per folder: ``rounds`` counts
rounds, and ``epochs``, ``parts`` (of an epoch) or ``steps`` counts the local work done.
"""

from collections.abc import Mapping

from mdc_flower.coordinator.trackers.tracker import ROUNDS, WORK, Start

FOLDER = "tensorboard"


class TensorBoardSink:
    """Writes event files; readers drop the events of older files after the rounds done."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writers = {
            axis: SummaryWriter(str(start.run_dir / FOLDER / name), purge_step=done + 1)
            for axis, name, done in (
                (ROUNDS, ROUNDS, start.rounds_done),
                (WORK, start.config.unit, start.work_done),
            )
        }

    def write(self, axis: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers."""
        for tag, value in scalars.items():
            self._writers[axis].add_scalar(tag, value, step)

    def flush(self) -> None:
        """Flush the files."""
        for writer in self._writers.values():
            writer.flush()

    def close(self, has_finished: bool) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
