"""Trackers: show a run in TensorBoard, MLflow or Weights & Biases while it goes on.

They get numbers of the history, which the sites send anyway, and the run config without paths. If a
tracker fails, it logs the error once and stops; the run continues.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from mdc_flower.common.extras import require
from mdc_flower.config import AUTO_TRACK, RunConfig
from mdc_flower.coordinator.trackers.mlflow_sink import MlflowSink
from mdc_flower.coordinator.trackers.tensorboard_sink import TensorBoardSink
from mdc_flower.coordinator.trackers.tracker import NewSink, Start, Tracker
from mdc_flower.coordinator.trackers.wandb_sink import WandbSink
from mdc_flower.reports.series import History, units

SINKS: dict[str, NewSink] = {
    "tensorboard": TensorBoardSink,
    "mlflow": MlflowSink,
    "wandb": WandbSink,
}
"""By name, which is also that of the library and of its extra."""


def check_trackers(config: RunConfig) -> None:
    """Check that the libraries of the run's trackers are installed.

    Raises
    ------
    ConfigError
        If one is not; it names the extra.
    """
    for name in _names(config):
        require((name,), name, f"track, {name}")


@contextmanager
def trackers(config: RunConfig, run_dir: Path, history: History) -> Iterator[list[Tracker]]:
    """Yield the run's trackers, and close them after the block.

    Parameters
    ----------
    config
        Its key ``track`` names them.
    run_dir
        Folder for their files.
    history
        The rounds that are finished already.
    """
    start = Start(run_dir, config, len(history), sum(map(units, history)))
    opened = [Tracker(name, SINKS[name], start) for name in _names(config)]
    has_finished = False
    try:
        yield opened
        has_finished = True
    finally:
        for tracker in opened:
            tracker.close(has_finished)


def _names(config: RunConfig) -> list[str]:
    """Return the names in ``track``; for ``auto``, TensorBoard if it is installed."""
    if config.track == AUTO_TRACK:
        return ["tensorboard"] if find_spec("tensorboard") else []
    return config.tracker_names
