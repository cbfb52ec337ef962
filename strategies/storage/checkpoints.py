"""All that the next round depends on, after every round.

A checkpoint is sealed files: the model, the outer optimizer's state where it has one, and a
description that names the others. The description comes last, so that a checkpoint exists when,
and only when, the others do. A round is saved twice: when its model is there, and, with a new
description, when that model has been evaluated.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from strategies.method.local_epochs import EpochState
from strategies.storage.model_files import StoredArrays, pack_model
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord

DESCRIPTION, MODEL = ".json", ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A position, and what ties it to its run.

    Attributes
    ----------
    position : Position
        Where the run stands.
    run : Mapping
        What the run was started with: config, partition, version. Compared on resume.
    history_bytes : int
        Length of the history before this round's line.
    record : Mapping or None
        This round's line, without an evaluation while the position is unfinished; None before
        round 1.
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
        Created if missing.
    keep : int
        How many of the newest are kept, >= 1; the models of their best rounds are kept too.
    recent : int
        Of how many of the newest rounds each of them keeps the models beside, >= 0.
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
        """Return the files of the newest rounds' models, by round; the initial one is none."""
        return {_round(path): path for path in self._recent}

    def save(self, checkpoint: Checkpoint, model_metadata: Mapping[str, Any]) -> None:
        """Write a checkpoint, and remove what is older than those kept.

        The newest round may be saved again: its arrays are not written twice.

        Raises
        ------
        StorageError
            If it cannot be written; those before it are intact.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(self._folder)
        position = checkpoint.position
        number = position.epochs.rounds_done
        if self._newest is None or _round(self._newest) != number:
            self._seal_arrays(position, model_metadata)
        # The sites' own scores of a model come with the next round.
        for model in (self._newest, self._previous):
            if model is not None and _round(model) == position.best_round > 0:
                self._best = model
        description = {
            "model": _name(self._newest),
            # Whether it is the best one is not known before the round is finished.
            "previous-model": _name(self._previous) if position.unfinished else None,
            "recent-models": [path.name for path in self._recent],
            "outer-state": _name(self._outer),
            "best-model": _name(self._best),
            "best-round": position.best_round,
            "best-score": position.best_score if position.best_round else None,
            "epochs": asdict(position.epochs),
            "pace": dict(position.pace),
            "absent": sorted(position.absent),
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

    def _seal_arrays(self, position: Position, model_metadata: Mapping[str, Any]) -> None:
        """Write the files of a round that is saved for the first time."""
        number = position.epochs.rounds_done
        content = pack_model(position.arrays, model_metadata)
        model = seal(self._folder, _stem(number), MODEL, content)
        reach("checkpoint-model-written", round=number)
        outer: Path | None = None
        if position.outer_state:
            content = pack_model(position.outer_state, {})
            outer = seal(self._folder, f"{_stem(number)}-outer", MODEL, content)
        self._newest, self._previous, self._outer = model, self._newest, outer
        recent = [*self._recent, model] if number else []
        self._recent = recent[-self._num_recent :] if self._num_recent else []

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint; None if none was ever written.

        A damaged one is set aside, loudly, and the one before is taken.

        Raises
        ------
        DamagedError
            If there are checkpoints and none is intact.
        """
        damaged = 0
        for path in reversed(self._descriptions()):
            try:
                return self._read(path)
            except DamagedError as error:
                log(WARNING, "%s. The checkpoint before it is used", error)
                path.rename(path.with_name(f"{path.name}.damaged"))
                damaged += 1
        # A model without a description is a checkpoint that never was: its writer died.
        if damaged or list(self._folder.glob("*.damaged")):
            raise DamagedError(
                "no checkpoint is intact",
                where=str(self._folder),
                hint="The run cannot be resumed; start it anew in another directory",
            )
        return None

    def _read(self, path: Path) -> Checkpoint:
        check_seal(path)
        told = json.loads(path.read_text(encoding="utf-8"))
        model = self._folder / told["model"]
        check_seal(model)
        name = told.get("outer-state")  # which earlier versions did not have
        outer = self._folder / name if name else None
        if outer is not None:
            check_seal(outer)
        self._newest, self._outer = model, outer
        # Earlier versions evaluated a model before they saved it.
        finished = told.get("finished", True)
        self._previous = self._intact(told.get("previous-model"), "It cannot become the best model")
        best_round, best_score = told["best-round"], told["best-score"]
        self._best = self._intact(told["best-model"], "The best model so far is lost")
        # Earlier versions kept none.
        recent = [
            self._intact(name, "The average will be without it")
            for name in told.get("recent-models", [])
        ]
        self._recent = [path for path in recent if path is not None]
        if self._best is None:
            best_round, best_score = 0, None
        position = Position(
            arrays=StoredArrays(model),
            epochs=EpochState(**told["epochs"]),
            outer_state={} if outer is None else StoredArrays(outer),
            best_round=best_round,
            best_score=float("-inf") if best_score is None else best_score,
            pace=told["pace"],
            unfinished=None if finished else RoundRecord(**told["record"]),
            absent=frozenset(told.get("absent", [])),  # which earlier versions did not have
        )
        return Checkpoint(position, told["run"], told["history-bytes"], told["record"])

    def _intact(self, name: str | None, otherwise: str) -> Path | None:
        if name is None:
            return None
        try:
            check_seal(self._folder / name)
        except DamagedError as error:
            log(WARNING, "%s. %s; the run goes on", error, otherwise)
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
            # Reading it tells how to mend that; until then nothing is thrown away.
            log(WARNING, "%s. All models are kept", error)
            return
        told = [json.loads(path.read_text(encoding="utf-8")) for path in kept]
        keys = ("model", "previous-model", "best-model", "outer-state")
        names = {one.get(key) for one in told for key in keys}
        names |= {name for one in told for name in one.get("recent-models", [])}
        for path in list(sealed_files(self._folder, MODEL)):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _descriptions(self) -> list[Path]:
        return list(sealed_files(self._folder, DESCRIPTION))


def _stem(rounds_done: int) -> str:
    return f"{rounds_done:06d}"


def _round(path: Path) -> int:
    return int(path.name.split(".")[0])


def _name(path: Path | None) -> str | None:
    return None if path is None else path.name
