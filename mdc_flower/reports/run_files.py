"""What a run directory says, while the run goes on as well as afterwards, and of any version."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdc_flower.common.config_files import read_toml
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
    """What a run directory says; what is not there is empty."""

    name: str
    history: History
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    events: Mapping[str, Sequence[Mapping[str, Any]]]


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory, however far the run came."""
    return any((folder / name).is_file() for name in (HISTORY, SUMMARY, EVENTS))


def read_run(folder: Path) -> RunFiles:
    """Read a run directory, while the run goes on as well.

    Raises
    ------
    ConfigError
        If the config is not TOML.
    RunError
        If the summary, or a finished line of the history, is not JSON.
    """
    kinds = ("run-started", "run-resumed", "round-started")
    return RunFiles(
        name=folder.resolve().name,
        history=_whole_lines(folder / HISTORY),
        summary=_summary(folder / SUMMARY),
        config=read_toml(folder / CONFIG) if (folder / CONFIG).is_file() else {},
        events={kind: read_events(folder, kind) for kind in kinds},
    )


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file to which somebody may be appending one right now."""
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
