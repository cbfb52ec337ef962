"""The run directory: writes the results of a run and its event log, and reads them back."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from logging import WARNING
from pathlib import Path
from shlex import quote
from typing import Any

from strategies.aggregation.averaging import Arrays, Update, uniform, weighted_mean
from strategies.common.errors import MdcError, RunError
from strategies.common.fault_points import reach
from strategies.common.files import (
    DamagedError,
    StorageError,
    append_line,
    cannot_write,
    copy_atomically,
    cut,
    cut_torn_line,
    finite,
    remove_temporary,
    write_atomically,
)
from strategies.common.log import log
from strategies.exchange.attendance import Awaited
from strategies.method.round_plan import RoundPlan
from strategies.storage.checkpoints import Checkpoint, Checkpoints
from strategies.storage.lock import LockedError, coordinator_lock
from strategies.storage.model_files import StoredArrays, model_parts
from strategies.storage.position import Position
from strategies.storage.recalibrations import Recalibrations
from strategies.storage.round_record import RoundRecord
from strategies.storage.updates import StoredUpdates

CONFIG, HISTORY, EVENTS, SUMMARY = "config.toml", "history.jsonl", "events.jsonl", "summary.json"
GLOBAL_MODEL, BEST_MODEL = "global-model.safetensors", "best-model.safetensors"
AVERAGED_MODEL = "averaged-model.safetensors"
REFUSED = "run-refused"
"""The event of a run that could not be resumed because of invalid input."""

INTERRUPTED = {"status": "interrupted", "exit-status": 130, "restart": False}
"""Summary fields of a run that was interrupted."""

CHECKPOINTS, OPEN_ROUND, UPDATES = "checkpoints", "open-round", "updates"
SITES = "sites"
"""The folder for what simulated sites keep from round to round."""

RECALIBRATIONS, OPEN_RECALIBRATION = "recalibrations", "open-recalibration"


@contextmanager
def run_directory(
    path: Path,
    model_metadata: Mapping[str, Any],
    *,
    resume: bool = False,
    keep_checkpoints: int = 2,
    keep_updates: bool = False,
    average_last: int = 0,
) -> Iterator["RunDirectory"]:
    """Open a run directory and hold its lock inside the block.

    Parameters
    ----------
    path : Path
        Absolute path of the directory; created if missing.
    model_metadata : Mapping
        Plain data sufficient to rebuild and use the model; stored in the model files. It must not
        differ between two equal runs, so it must contain no times and no paths.
    resume : bool
        Whether to resume the run in the directory. If there is none, a new run begins.
    keep_checkpoints : int
        Number of newest checkpoints to keep.
    keep_updates : bool
        Whether to keep the sites' updates after their round.
    average_last : int
        Number of newest rounds whose models are kept for their average.

    Raises
    ------
    RunError
        If the path is not absolute, is in use, cannot be written, has no intact checkpoint, or
        already holds a run and ``resume`` is not set.
    """
    if not path.is_absolute():
        raise RunError(
            "the run directory's path is not absolute",
            where="output-dir",
            got=str(path),
            expected="an absolute path",
            hint="A relative path would depend on the directory where the SuperLink was started",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / EVENTS).touch()
    except OSError as error:
        raise cannot_write(path, error) from None
    with coordinator_lock(path) as before:
        if not resume:
            refuse_used(path, RunError, "output-dir")
        if before and read_summary(path).get("status") == "running":
            log(
                WARNING, "taking over from process %s, which died during the run", before.get("pid")
            )
        remove_temporary(path)
        cut_torn_line(path / EVENTS)
        yield RunDirectory(path, model_metadata, keep_checkpoints, keep_updates, average_last)


class RunDirectory:
    """Records one run; a `RunObserver`. Created by `run_directory`, which holds the lock."""

    def __init__(
        self,
        path: Path,
        model_metadata: Mapping[str, Any],
        keep_checkpoints: int = 2,
        keep_updates: bool = False,
        average_last: int = 0,
    ) -> None:
        self.path = path
        self.updates = StoredUpdates(path / OPEN_ROUND, path / UPDATES if keep_updates else None)
        self.open_statistics = StoredUpdates(path / OPEN_RECALIBRATION)
        self.recalibrations = Recalibrations(path / RECALIBRATIONS)
        self._metadata = dict(model_metadata)
        self._checkpoints = Checkpoints(path / CHECKPOINTS, keep_checkpoints, average_last)
        self._run: dict[str, Any] = {}
        self.checkpoint = self._checkpoints.newest()
        if self.checkpoint is None and _size(path / HISTORY):
            raise DamagedError(
                "the run's checkpoints are missing",
                where=str(path / CHECKPOINTS),
                hint="Restore them, or start a new run in another directory",
            )
        # Wall time of the rounds finished by earlier processes.
        self.seconds_before = 0.0
        self.begun = False
        self._copied: dict[str, Path] = {}

    def begin(self, initial: Arrays, start: Position, run: Mapping[str, Any]) -> Position:
        """Begin the run, or return to its newest checkpoint; return the position.

        The position's arrays stay on the disk and are read when they are used.

        Parameters
        ----------
        initial
            The initial model, which sets the order of the arrays.
        start
            The position before round 1.
        run
            Config, partition and version of the run; stored in every checkpoint.
        """
        self._run = dict(run)
        self.begun = True
        if self.checkpoint is None:
            self._save(start, 0, None)
            write_atomically(self.path / HISTORY, b"")
            return self.from_disk(start)
        position = self.checkpoint.position
        history = self.path / HISTORY
        history.touch()
        if history.stat().st_size < self.checkpoint.history_bytes:
            raise RunError(
                "the history is shorter than its checkpoint says",
                where=str(history),
                got=f"{history.stat().st_size} bytes",
                expected=f"{self.checkpoint.history_bytes} or more",
                hint="Lines were removed. Restore them, or start a new run",
            )
        # The line of the checkpoint's round may be missing, or later lines may follow it.
        cut(history, self.checkpoint.history_bytes)
        unfinished = position.unfinished
        if self.checkpoint.record is not None and unfinished is None:
            append_line(history, self.checkpoint.record)
        self.seconds_before = sum(float(line["seconds"]) for line in read_history(self.path))
        self.seconds_before += unfinished.seconds if unfinished else 0.0
        self._copy_models()
        return self.from_disk(position, initial)

    def from_disk(self, position: Position, names: Iterable[str] | None = None) -> Position:
        """Return the position that was saved last with arrays that are read when they are used.

        ``names`` are the model's arrays in their order, by default as in the position.
        """
        return self._checkpoints.on_disk(position, names or position.arrays)

    def describe_models(self, **about: str) -> None:
        """Add to the metadata of the model files that are written from now on."""
        self._metadata |= about

    def write_text(self, name: str, text: str) -> None:
        """Write a small text file atomically."""
        write_atomically(self.path / name, text.encode())

    def write_model(self, name: str, arrays: Arrays, **about: str) -> None:
        """Write a model file; ``about`` is added to the run's model metadata."""
        write_atomically(self.path / name, model_parts(arrays, self._metadata | about))

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to the event log, which live views read."""
        append_line(self.path / EVENTS, {"event": kind, "time": round(time.time(), 3), **fields})

    def sites_awaited(self, awaited: Awaited) -> None:
        """Log the sites that the next round waits for."""
        self.event("sites-awaited", **asdict(awaited))

    def round_started(self, plan: RoundPlan, sites: Iterable[str], kept: Iterable[str]) -> None:
        """Log the plan, the sites it is sent to, and the sites whose updates are stored."""
        self.event("round-started", plan=plan.model_dump(), sites=list(sites), kept=list(kept))

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        """Log one site's reply."""
        self.event("site-answered", round=round_number, site=site, dropped=reason)

    def round_retried(self, record: RoundRecord, quorum: int) -> None:
        """Log that a round is repeated because of too few updates."""
        self.event("round-retried", quorum=quorum, **record.to_dict())

    def round_folded(self, record: RoundRecord, position: Position) -> None:
        """Save a checkpoint; from here on the sites' work in the round cannot be lost."""
        self._save(position, (self.path / HISTORY).stat().st_size, record.to_dict())
        reach("round-folded", round=record.round)

    def round_finished(self, record: RoundRecord, position: Position) -> None:
        """Complete the checkpoint, then write the line, so that its model is always on disk."""
        line = record.to_dict()
        self._save(position, (self.path / HISTORY).stat().st_size, line)
        reach("checkpoint-written", round=record.round)
        append_line(self.path / HISTORY, line)
        self.event("round-finished", **line)
        reach("round-finished", round=record.round)

    def round_failed(self, record: RoundRecord) -> None:
        """Record a round that ended the run; resuming the run removes its line."""
        append_line(self.path / HISTORY, record.to_dict())
        self.event("round-finished", **record.to_dict())

    def average_models(self, names: Iterable[str]) -> tuple[list[int], Arrays]:
        """Write the mean of the newest rounds' models; return the rounds and the mean.

        All rounds have equal weight. While it is computed, the mean and one array of one model
        are in memory; the result is read from the file when it is used. Counters are taken from
        the newest model. If no models were kept, no file is written and both results are empty.

        Parameters
        ----------
        names
            The arrays, in the order of the result.
        """
        kept = self._checkpoints.recent_models
        if not kept:
            return [], {}
        models = [Update(path.name, 1, StoredArrays(path), {}) for path in kept.values()]
        self.write_model(AVERAGED_MODEL, weighted_mean(models[::-1], uniform, names))
        return list(kept), StoredArrays(self.path / AVERAGED_MODEL, names)

    def _save(
        self, position: Position, history_bytes: int, record: Mapping[str, Any] | None
    ) -> None:
        checkpoint = Checkpoint(position, self._run, history_bytes, record)
        self._checkpoints.save(checkpoint, self._metadata)
        self._copy_models()

    def _copy_models(self) -> None:
        """Copy the newest and the best model from the checkpoints, if they have changed.

        They are copies, so that overwriting one does not damage a checkpoint.
        """
        for model, name in (
            (self._checkpoints.newest_model, GLOBAL_MODEL),
            (self._checkpoints.best_model, BEST_MODEL),
        ):
            if model is not None and self._copied.get(name) != model:
                copy_atomically(model, self.path / name)
                self._copied[name] = model


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def holds_run(run_dir: Path) -> bool:
    """Return whether a directory contains a run."""
    return any((run_dir / name).exists() for name in (CHECKPOINTS, HISTORY))


def refuse_used(run_dir: Path, kind: type[MdcError], where: str) -> None:
    """Raise an error of type ``kind``, about the option ``where``, if a directory holds a run."""
    if holds_run(run_dir):
        raise kind(
            "the directory holds a run already",
            where=where,
            got=str(run_dir),
            hint="Choose another directory, or resume that run: "
            f"mdc run --resume {quote(str(run_dir))}",
        )


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary atomically; NaN and infinities become null."""
    text = json.dumps(finite(summary), indent=2, allow_nan=False)
    write_atomically(run_dir / SUMMARY, f"{text}\n".encode())


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the summary; empty if it is missing or cannot be read."""
    try:
        return dict(json.loads((run_dir / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def mark_interrupted(run_dir: Path) -> None:
    """Mark a run as interrupted in its summary, if its coordinator could not.

    Does nothing while a coordinator is running, and only logs a warning if the summary cannot be
    read or written: the run is about to end, and this must not affect how it ends.
    """
    path = run_dir / SUMMARY
    if not path.is_file():
        return
    try:
        with coordinator_lock(run_dir):
            summary = json.loads(path.read_text(encoding="utf-8"))
            if summary["status"] == "running":
                write_summary(run_dir, summary | INTERRUPTED)
    except (LockedError, StorageError, ValueError, KeyError) as error:
        log(WARNING, "could not mark the run as interrupted in %s: %s", path, error)


def count_rounds(run_dir: Path) -> int:
    """Return the number of complete lines in the history; 0 if there is no history."""
    path = run_dir / HISTORY
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rounds recorded in a run directory.

    Raises
    ------
    RunError
        If there is no history, or if a line is not JSON; the error gives the line number.
    """
    path = run_dir / HISTORY
    if not path.is_file():
        raise RunError("there is no run here", where=str(run_dir), expected=f"a file {HISTORY}")
    return list(read_lines(path))


def read_events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind; incomplete lines are skipped."""
    path = run_dir / EVENTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [event for line in lines if (event := read_event(line)).get("event") == kind]


def read_event(line: str | bytes) -> dict[str, Any]:
    """Return one event; empty if the line is incomplete, for example after a full disk."""
    try:
        return dict(json.loads(line))
    except (TypeError, ValueError):
        return {}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file.

    Raises
    ------
    RunError
        If a line is not JSON; the error gives the line number.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise RunError(f"not JSON: {error}", where=f"{path}, line {number}") from None
