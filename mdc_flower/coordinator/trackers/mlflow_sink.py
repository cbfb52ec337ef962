"""An MLflow run, at ``MLFLOW_TRACKING_URI`` or in a database in the run directory."""

import os
import time
from collections.abc import Mapping

from mdc_flower import __version__
from mdc_flower.coordinator.trackers.tracker import Start, remembered, shown

DATABASE, RUN_ID = "mlflow.db", "mlflow-run-id"
EXPERIMENT = "mdc-flower"
"""Experiment, unless ``MLFLOW_EXPERIMENT_NAME`` names another."""


class MlflowSink:
    """Writes metrics of one MLflow run; the run config is its parameters."""

    def __init__(self, start: Start) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric = Metric
        local = f"sqlite:///{start.run_dir / DATABASE}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        is_new = not (start.run_dir / RUN_ID).is_file()
        self._run_id = remembered(start.run_dir / RUN_ID, lambda: self._new_run(start))
        self._client.update_run(self._run_id, "RUNNING")
        if is_new:
            for key, value in shown(start.config).items():
                self._client.log_param(self._run_id, key, value)

    def write(self, axis: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers."""
        now_ms = int(1000 * time.time())
        metrics = [self._metric(tag, value, now_ms, step) for tag, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics)

    def flush(self) -> None:
        """Do nothing: every number is written at once."""

    def close(self, has_finished: bool) -> None:
        """End the run; a resumed run opens it again."""
        self._client.set_terminated(self._run_id, "FINISHED" if has_finished else "FAILED")

    def _new_run(self, start: Start) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        tags = {"mdc-flower.version": __version__, "mdc-flower.run-dir": str(start.run_dir)}
        run = self._client.create_run(experiment, tags=tags, run_name=start.run_dir.name)
        return str(run.info.run_id)
