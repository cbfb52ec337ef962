"""Read the files of a run directory, of a running or finished run and of any version."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdc_flower.common.config_files import read_toml
from mdc_flower.common.local_work import of_this_version
from mdc_flower.common.shown_metrics import ShownMetric, shown_metrics
from mdc_flower.reports.series import History
from strategies.common.errors import RunError
from strategies.storage.run_directory import (
    CONFIG,
    EVENTS,
    HISTORY,
    SUMMARY,
    read_event,
    read_events,
)


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run directory; missing files give empty values."""

    name: str
    history: History
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    events: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def metrics(self) -> Sequence[ShownMetric]:
        """Return the run's metrics, from its newest start."""
        started = self.events["run-started"]
        return shown_metrics(started[-1].get("metrics") if started else None)


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory, even of a run with no finished round."""
    return any((folder / name).is_file() for name in (HISTORY, SUMMARY, EVENTS))


def read_run(folder: Path) -> RunFiles:
    """Read a run directory; the run may still be in progress.

    Raises
    ------
    ConfigError
        If the config is not TOML.
    RunError
        If the summary or a complete line of the history is not usable JSON.
    """
    kinds = ("run-started", "run-resumed", "round-started")
    config = folder / CONFIG
    return RunFiles(
        name=folder.resolve().name,
        history=_whole_lines(folder / HISTORY),
        summary=_summary(folder / SUMMARY),
        config=of_this_version(read_toml(config)) if config.is_file() else {},
        events={kind: read_events(folder, kind) for kind in kinds},
    )


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a history that another process may be appending to."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    lines = [read_event(line) for line in whole]
    for number, line in enumerate(lines, start=1):
        if "round" not in line or "plan" not in line:
            raise RunError("not a round's record", where=f"{path}, line {number}")
    return lines


def _summary(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise RunError(f"not JSON: {error}", where=str(path)) from None
