"""What a site keeps from round to round: sealed files, which count only if the coordinator says so.

A round begins with the state that the coordinator names, whatever newer files there are, and writes
a new one. See `strategies.exchange.lineage` and decision 24.
"""

import re
import time
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Any

from mdc_flower.console.site_log import site_event
from mdc_flower.site.own_files import OwnFiles
from mdc_flower.training.runtime import Saved
from strategies.aggregation.averaging import Arrays
from strategies.common.errors import StateMissingError
from strategies.common.fault_points import reach
from strategies.common.files import StorageError
from strategies.common.log import log
from strategies.exchange.lineage import Lineage
from strategies.method.round_plan import RoundPlan
from strategies.storage.model_files import StoredArrays, model_parts

OPTIMIZER, KEPT = "optimizer", "kept"
"""The kinds of state: an optimizer's state, and the arrays of the model that stay at the site."""

OWN_NAME = re.compile(
    r"[0-9]{20}\.[0-9]{6,}\.[0-9a-f]{16}\.(optimizer|kept)\.[0-9a-f]{32}\.safetensors"
)
"""Run, round, plan id, kind, digest."""

FORGOTTEN_S = 30 * 86400.0
"""Age in seconds at which the states of another run are deleted."""


class NamedState:
    """The state that the coordinator names in a message.

    Parameters
    ----------
    folder : Path
        Folder for the files; created if missing, for its owner only.
    lineage : Lineage
        The run, and the named state.
    """

    def __init__(self, folder: Path, lineage: Lineage) -> None:
        self._files = OwnFiles(folder, OWN_NAME)
        self._run = f"{int(lineage.run):020d}"
        self._state_from = lineage.state_from

    @property
    def begins_anew(self) -> bool:
        """Whether the message names no state."""
        return not self._state_from

    def read(self, kind: str) -> StoredArrays:
        """Return the named state of a kind.

        Raises
        ------
        StateMissingError
            If it is not here, or is damaged.
        """
        named = f".{self._state_from}.{kind}."
        paths = [path for path in self._files.paths(f"{self._run}.") if named in path.name]
        stored = self._files.read(paths[0].name.rsplit(".", 2)[0]) if paths else None
        if stored is None:
            raise missing("it is not here, or it was damaged")
        return stored


class SiteState(NamedState):
    """The states of a site in one run, seen from one round.

    Opening the round deletes the states that the run no longer needs, and old ones of other runs.

    Parameters
    ----------
    folder : Path
        Folder for the files; created if missing, for its owner only.
    plan : RoundPlan
        The round.
    lineage : Lineage
        The run, and the state with which the round begins.
    spare : int
        Number of states to keep that were named before that one. The coordinator needs them if it
        returns to an earlier checkpoint.
    """

    def __init__(self, folder: Path, plan: RoundPlan, lineage: Lineage, spare: int = 0) -> None:
        super().__init__(folder, lineage)
        self._plan = plan
        self._files.delete([*self._superseded(spare), *self._forgotten()])

    def write(self, kind: str, arrays: Arrays, about: Mapping[str, Any]) -> None:
        """Write the state of a kind after this round.

        If that fails, the site's update still counts, and the next round begins without the state.
        """
        stem = self._stem(kind)
        earlier = self._files.paths(f"{stem}.")
        try:
            written = self._files.write(stem, model_parts(arrays, about))
        except StorageError as error:
            log(WARNING, "%s. This site's next round begins without its %s state", error, kind)
            site_event("state-not-written", round=self._plan.round, state=kind)
            self._files.delete(earlier)  # another state of this round must not take its place
            return
        self._files.delete([path for path in earlier if path != written])
        reach("state-written", round=self._plan.round, path=str(written))

    def has_written(self, kind: str) -> bool:
        """Return whether the state of a kind after this round is here and intact."""
        return self._files.read(self._stem(kind)) is not None

    def _stem(self, kind: str) -> str:
        return f"{self._run}.{self._plan.round:06d}.{self._plan.plan_id}.{kind}"

    def _superseded(self, spare: int) -> list[Path]:
        """Return the states of this run that no round begins with any more.

        Of the rounds before this one, only those up to the named state can have counted. Later
        rounds are left alone, because a message may arrive late.
        """
        own = self._files.paths(f"{self._run}.")
        earlier = [path for path in own if _round(path) < self._plan.round]
        named = {_round(path) for path in earlier if _plan_id(path) == self._state_from}
        counted = sorted({_round(p) for p in earlier if _round(p) <= min(named, default=0)})
        return [path for path in earlier if _round(path) not in counted[-1 - spare :]]

    def _forgotten(self) -> list[Path]:
        others = [p for p in self._files.paths() if not p.name.startswith(f"{self._run}.")]
        return [path for path in others if time.time() - path.stat().st_mtime > FORGOTTEN_S]


class KeptOptimizer:
    """Carries an optimizer's state, and the scale of its losses, over rounds; see `SiteState`."""

    def __init__(self, state: SiteState) -> None:
        self._state = state

    def read(self) -> Saved | None:
        """Return the state with which the round begins; None if it begins anew.

        Raises
        ------
        StateMissingError
            If the state is not here.
        """
        if self._state.begins_anew:
            return None
        stored = self._state.read(OPTIMIZER)
        return stored, stored.metadata

    def unusable(self, error: Exception) -> StateMissingError:
        """Return the error of a site whose state cannot be restored."""
        return missing(f"it cannot be restored: {type(error).__name__}: {error}")

    def is_due(self) -> bool:
        """Return true: the state is written after each round."""
        return True

    def write(self, saved: Saved) -> None:
        """Write the state after the round."""
        self._state.write(OPTIMIZER, *saved)


def missing(why: str) -> StateMissingError:
    """Return the error of a site that does not have the named state."""
    return StateMissingError(
        f"this site has lost the state with which the round begins: {why}",
        hint="The coordinator asks the site again, and it begins without that state",
    )


def _round(path: Path) -> int:
    return int(path.name.split(".")[1])


def _plan_id(path: Path) -> str:
    return path.name.split(".")[2]
