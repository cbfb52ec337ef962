"""Checkpoints: everything that the next round depends on, saved after every round.

A checkpoint consists of sealed files: the model, the state of the outer optimizer if it has one,
and a description that names the others. The description is written last, so a checkpoint exists
only if its other files do. Each round is saved twice: when its model exists, and again, with a new
description, when that model has been evaluated.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from logging import WARNING
from pathlib import Path
from typing import Any

from strategies.common.fault_points import reach
from strategies.common.files import (
    DamagedError,
    check_seal,
    finite,
    remove_temporary,
    seal,
    sealed_files,
    writing,
)
from strategies.common.log import log
from strategies.method.local_work import WorkState
from strategies.storage.model_files import SealedArrays, StoredArrays, model_parts
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord

DESCRIPTION, MODEL = ".json", ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A position, with the information that ties it to its run.

    Attributes
    ----------
    position : Position
        State of the run between two rounds.
    run : Mapping
        Config, partition and version that the run was started with; compared on resume.
    history_bytes : int
        Length of the history before this round's line, in bytes.
    record : Mapping or None
        This round's line of the history, without the evaluation while the position is unfinished;
        None before round 1.
    """

    position: Position
    run: Mapping[str, Any]
    history_bytes: int
    record: Mapping[str, Any] | None


class Checkpoints:
    """The checkpoints of a run directory.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoints; created if missing.
    keep : int
        Number of newest checkpoints to keep, >= 1. The best model of each is kept too.
    recent : int
        Number of newest rounds whose models each checkpoint keeps in addition, >= 0.
    """

    def __init__(self, folder: Path, keep: int = 2, recent: int = 0) -> None:
        self._folder = folder
        self._keep = keep
        self._num_recent = recent
        self._recent: list[Path] = []
        self._best: Path | None = None
        self._newest: Path | None = None
        self._previous: Path | None = None
        self._outer: Path | None = None

    @property
    def newest_model(self) -> Path | None:
        """Return the file of the newest model."""
        return self._newest

    @property
    def best_model(self) -> Path | None:
        """Return the file of the best model so far."""
        return self._best

    @property
    def recent_models(self) -> dict[int, Path]:
        """Return the model files of the newest rounds, by round; excludes the initial model."""
        return {_round(path): path for path in self._recent}

    def save(self, checkpoint: Checkpoint, model_metadata: Mapping[str, Any]) -> None:
        """Write a checkpoint, and remove checkpoints that are no longer kept.

        If the newest round is saved again, its arrays are not written again.

        Raises
        ------
        StorageError
            If the checkpoint cannot be written. Earlier checkpoints stay intact.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(self._folder)
        position = checkpoint.position
        number = position.work.rounds_done
        if self._newest is None or _round(self._newest) != number:
            self._seal_arrays(position, model_metadata)
        # The sites' scores of a model arrive in the next round, so the best may be the previous.
        for model in (self._newest, self._previous):
            if model is not None and _round(model) == position.best_round > 0:
                self._best = model
        description = {
            "model": _name(self._newest),
            # It may become the best model until the round is finished.
            "previous-model": _name(self._previous) if position.unfinished else None,
            "recent-models": [path.name for path in self._recent],
            "outer-state": _name(self._outer),
            "best-model": _name(self._best),
            "best-round": position.best_round,
            "best-score": position.best_score if position.best_round else None,
            "work": asdict(position.work),
            "pace": dict(position.pace),
            "absent": sorted(position.absent),
            "counted": dict(position.counted),
            "history-bytes": checkpoint.history_bytes,
            "record": checkpoint.record,
            "finished": position.unfinished is None,
            "run": dict(checkpoint.run),
        }
        content = json.dumps(finite(description), indent=1, allow_nan=False).encode()
        written = seal(self._folder, _stem(number), DESCRIPTION, content)
        with writing(self._folder):
            for path in self._descriptions():
                if _round(path) == number and path != written:
                    path.unlink()
            self._prune()

    def on_disk(self, position: Position, names: Iterable[str]) -> Position:
        """Return the position of the newest checkpoint with arrays that are read when used.

        ``names`` are the model's arrays, in their order.
        """
        if self._newest is None:
            raise RuntimeError("no checkpoint was written or read")
        return replace(
            position,
            arrays=SealedArrays(self._newest, names, intact=True),
            outer_state=SealedArrays(self._outer, intact=True) if self._outer else {},
        )

    def _seal_arrays(self, position: Position, model_metadata: Mapping[str, Any]) -> None:
        """Write the array files of a round that is saved for the first time."""
        number = position.work.rounds_done
        content = model_parts(position.arrays, model_metadata)
        model = seal(self._folder, _stem(number), MODEL, content)
        reach("checkpoint-model-written", round=number)
        outer: Path | None = None
        if position.outer_state:
            content = model_parts(position.outer_state, {})
            outer = seal(self._folder, f"{_stem(number)}-outer", MODEL, content)
        self._newest, self._previous, self._outer = model, self._newest, outer
        recent = [*self._recent, model] if number else []
        self._recent = recent[-self._num_recent :] if self._num_recent else []

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint; None if none was ever written.

        A damaged checkpoint is renamed with a warning, and the one before it is used.

        Raises
        ------
        DamagedError
            If there are checkpoints but none is intact.
        """
        damaged = 0
        for path in reversed(self._descriptions()):
            try:
                return self._read(path)
            except DamagedError as error:
                log(WARNING, "%s. The checkpoint before it is used", error)
                path.rename(path.with_name(f"{path.name}.damaged"))
                damaged += 1
        # A model without a description is not a checkpoint: its writer died before completing it.
        if damaged or list(self._folder.glob("*.damaged")):
            raise DamagedError(
                "no checkpoint is intact",
                where=str(self._folder),
                hint="The run cannot be resumed; start a new run in another directory",
            )
        return None

    def _read(self, path: Path) -> Checkpoint:
        check_seal(path)
        description = json.loads(path.read_text(encoding="utf-8"))
        model = self._folder / description["model"]
        check_seal(model)
        name = description.get("outer-state")  # missing in earlier versions
        outer = self._folder / name if name else None
        if outer is not None:
            check_seal(outer)
        self._newest, self._outer = model, outer
        # Earlier versions evaluated a model before saving it.
        finished = description.get("finished", True)
        self._previous = self._intact(
            description.get("previous-model"), "It cannot become the best model"
        )
        best_round, best_score = description["best-round"], description["best-score"]
        self._best = self._intact(description["best-model"], "The best model so far is lost")
        # Earlier versions kept no recent models.
        recent = [
            self._intact(name, "The average of the last models will not include it")
            for name in description.get("recent-models", [])
        ]
        self._recent = [path for path in recent if path is not None]
        if self._best is None:
            best_round, best_score = 0, None
        position = Position(
            arrays=StoredArrays(model),
            work=_work(description),
            outer_state={} if outer is None else StoredArrays(outer),
            best_round=best_round,
            best_score=float("-inf") if best_score is None else best_score,
            pace=description["pace"],
            unfinished=None if finished else RoundRecord(**description["record"]),
            absent=frozenset(description.get("absent", [])),  # missing in earlier versions
            counted=description.get("counted", {}),  # likewise
        )
        return Checkpoint(
            position, description["run"], description["history-bytes"], description["record"]
        )

    def _intact(self, name: str | None, consequence: str) -> Path | None:
        if name is None:
            return None
        try:
            check_seal(self._folder / name)
        except DamagedError as error:
            log(WARNING, "%s. %s; the run continues", error, consequence)
            return None
        return self._folder / name

    def _prune(self) -> None:
        descriptions = self._descriptions()
        kept = descriptions[-self._keep :]
        for path in descriptions[: -self._keep]:
            path.unlink(missing_ok=True)
        try:
            for path in kept:
                check_seal(path)
        except DamagedError as error:
            # `newest` handles the damage when it reads the checkpoint; delete nothing until then.
            log(WARNING, "%s. All models are kept", error)
            return
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in kept]
        keys = ("model", "previous-model", "best-model", "outer-state")
        names = {one.get(key) for one in contents for key in keys}
        names |= {name for one in contents for name in one.get("recent-models", [])}
        for path in list(sealed_files(self._folder, MODEL)):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _descriptions(self) -> list[Path]:
        return list(sealed_files(self._folder, DESCRIPTION))


def _work(description: Mapping[str, Any]) -> WorkState:
    """Return the state of the local work.

    Earlier versions stored it under other names, and counted no steps, because all rounds of a run
    in steps had the same length.
    """
    if "work" in description:
        return WorkState(**description["work"])
    old, record = description["epochs"], description["record"]
    steps, done = record["plan"]["local_steps"] if record else 0, old["rounds_done"]
    if steps:
        return WorkState(steps, used=done * steps, rounds_done=done)
    return WorkState(old["local_epochs"], used=old["epochs_used"], rounds_done=done)


def _stem(rounds_done: int) -> str:
    return f"{rounds_done:06d}"


def _round(path: Path) -> int:
    return int(path.name.split(".")[0])


def _name(path: Path | None) -> str | None:
    return None if path is None else path.name
