"""The run directory: what a run leaves behind, and what others watch while it goes on.

Every file appears whole or not at all: it is written under a temporary name, forced to disk
and renamed. Lines of the two logs are written and forced one by one.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from strategies.averaging import Arrays
from strategies.colearning import RoundRecord
from strategies.errors import RunError
from strategies.round_plan import RoundPlan

CONFIG, HISTORY, EVENTS, SUMMARY = "config.toml", "history.jsonl", "events.jsonl", "summary.json"
GLOBAL_MODEL, BEST_MODEL = "global-model.safetensors", "best-model.safetensors"
METADATA_KEY = "mdc-flower"


class RunDirectory:
    """Records one run in a directory of its own; a `RunObserver`.

    Parameters
    ----------
    path : Path
        Absolute path; created if missing.
    model_metadata : Mapping
        Plain data that suffices to rebuild and use the model; stored in the model files.
        It must not differ between two equal runs: no times, no paths.

    Raises
    ------
    RunError
        If the path is not absolute, holds a run already, or cannot be written.
    """

    def __init__(self, path: Path, model_metadata: Mapping[str, Any]) -> None:
        if not path.is_absolute():
            raise RunError(
                "the run directory's path is not absolute",
                where="output-dir",
                got=str(path),
                expected="an absolute path",
                hint="Relative paths would resolve against wherever the SuperLink was started",
            )
        if (path / HISTORY).exists():
            raise RunError(
                "the directory holds a run already",
                where="output-dir",
                got=str(path),
                hint="Name another directory, or move the old run away",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / HISTORY).touch()
        except OSError as error:
            raise RunError(
                f"the run directory cannot be written: {error.strerror}",
                where="output-dir",
                got=str(path),
            ) from None
        self.path = path
        self._metadata = dict(model_metadata)

    def write_text(self, name: str, text: str) -> None:
        """Write a small text file whole."""
        write_atomically(self.path / name, text.encode())

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to the event log, which live views follow."""
        _append(self.path / EVENTS, {"event": kind, "time": round(time.time(), 3), **fields})

    def round_started(self, plan: RoundPlan, sites: Iterable[str]) -> None:
        """Log the plan and whom it goes to."""
        self.event("round-started", plan=plan.model_dump(), sites=list(sites))

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        """Log one site's reply."""
        self.event("site-answered", round=round_number, site=site, dropped=reason)

    def round_finished(self, record: RoundRecord, arrays: Arrays, is_best: bool) -> None:
        """Save the global model, then the round's line: a line's model is always on disk."""
        content = pack_model(arrays, self._metadata)
        write_atomically(self.path / GLOBAL_MODEL, content)
        if is_best:
            write_atomically(self.path / BEST_MODEL, content)
        _append(self.path / HISTORY, record.to_dict())
        self.event("round-finished", **record.to_dict())


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rounds recorded in a run directory.

    Raises
    ------
    RunError
        If there is no history, or a line of it is not JSON, with the line's number.
    """
    path = run_dir / HISTORY
    if not path.is_file():
        raise RunError("there is no run here", where=str(run_dir), expected=f"a file {HISTORY}")
    rounds = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rounds.append(json.loads(line))
        except ValueError as error:
            raise RunError(f"not JSON: {error}", where=f"{path}, line {number}") from None
    return rounds


def pack_model(arrays: Arrays, metadata: Mapping[str, Any]) -> bytes:
    """Return a model as the bytes of a safetensors file; equal models give equal bytes."""
    # One metadata key: safetensors writes several of them in an order that differs from
    # process to process, and equal models would not be equal files.
    text = json.dumps(metadata, sort_keys=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # ascontiguousarray makes a scalar an array of one element; give it its shape back.
    shaped = {name: array.reshape(arrays[name].shape) for name, array in contiguous.items()}
    return save(shaped, metadata={METADATA_KEY: text})


def read_model(path: Path) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    """Return the arrays and the metadata of a model file.

    Raises
    ------
    RunError
        If the file is missing, is damaged, or was not written by this project.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
        arrays = load_file(path)
    except FileNotFoundError:
        raise RunError("there is no model here", where=str(path)) from None
    except safetensors.SafetensorError as error:
        raise RunError(f"the model file is damaged: {error}", where=str(path)) from None
    if metadata is None:
        raise RunError(
            "the file does not say how to rebuild the model",
            where=str(path),
            expected=f"safetensors metadata with the key {METADATA_KEY!r}",
        )
    try:
        return arrays, json.loads(metadata)
    except ValueError as error:
        raise RunError(f"the model file is damaged: metadata: {error}", where=str(path)) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, force it to disk, and rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _append(path: Path, fields: Mapping[str, Any]) -> None:
    line = json.dumps(_finite(fields), allow_nan=False)
    with path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    """Return the value with what JSON cannot hold (NaN and infinities) made null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
