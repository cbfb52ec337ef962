"""The files of one round at a site: its last finished epoch, and its finished reply.

A site that was killed or cut off in mid-round is asked again. With these files it continues after
the last saved epoch, or sends its reply again, with the same bits as without the interruption.
"""

import hashlib
import json
import re
import time
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from mdc_flower import __version__
from mdc_flower.console.site_log import site_event
from mdc_flower.site.own_files import OwnFiles
from strategies.common.errors import MdcError
from strategies.common.fault_points import reach
from strategies.common.files import Content, StorageError
from strategies.common.log import log
from strategies.exchange.messages import (
    ARRAYS,
    DEADLINE,
    METRICS,
    arrays_to_record,
    train_reply_content,
)
from strategies.exchange.records import record_views, records_of
from strategies.storage.model_files import model_parts

if TYPE_CHECKING:  # imports PyTorch
    from mdc_flower.training.runtime import Saved

EPOCH, REPLY = "epoch", "reply"

OWN_NAME = re.compile(r"[0-9a-f]{24}\.(epoch|reply)\.[0-9a-f]{32}\.safetensors")

SHARE = 0.01
"""Largest share of the training time that may be spent on saving epochs."""


def round_key(content: RecordDict, about: Any) -> str:
    """Return a digest of everything that a site's reply depends on, 24 hex digits.

    Parameters
    ----------
    content
        The content of the train message, with plan and model. Its deadline does not count.
    about
        Run config, node config, and whatever else matters, as plain data.
    """
    digest = hashlib.sha256(json.dumps([__version__, about], sort_keys=True).encode())
    for name, record in sorted(records_of(content, ConfigRecord).items()):
        fields = {key: value for key, value in record.items() if key != DEADLINE}
        digest.update(json.dumps([name, fields], sort_keys=True).encode())
    for name, array in records_of(content, ArrayRecord)[ARRAYS].items():
        digest.update(json.dumps([name, array.dtype, list(array.shape), array.stype]).encode())
        digest.update(array.data)
    return digest.hexdigest()[:24]


class RoundFiles:
    """The files of the round with a key; files of other rounds are deleted.

    A file that cannot be written or read costs only time, so it never fails the round.

    Parameters
    ----------
    folder : Path
        Folder for the files; created if missing, for its owner only.
    key : str
        See `round_key`.

    Attributes
    ----------
    continued : bool
        Whether training continued after a saved epoch.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._files = OwnFiles(folder, OWN_NAME)
        self._key = key
        self._saved_at = self._began_at = time.monotonic()
        self._cost_s = 0.0
        self.continued = False
        own = set(self._files.paths(f"{key}."))
        self._files.delete([path for path in self._files.paths() if path not in own])

    def reply(self) -> RecordDict | None:
        """Return the finished reply; None if there is none."""
        arrays = self._files.read(f"{self._key}.{REPLY}")
        if arrays is None:
            return None
        about = arrays.metadata
        return train_reply_content(
            arrays_to_record({name: arrays[name] for name in about["names"]}),
            about["metrics"],
            about["plan-id"],
        )

    def keep_reply(self, reply: RecordDict, plan_id: str) -> None:
        """Save the finished reply; it replaces the epochs."""
        arrays = record_views(records_of(reply, ArrayRecord)[ARRAYS])
        metrics = dict(records_of(reply, MetricRecord)[METRICS])
        about = {"names": list(arrays), "metrics": metrics, "plan-id": plan_id}
        self._replace(REPLY, model_parts(arrays, about))
        reach("reply-kept", path=str(self._files.folder))

    def read(self) -> "Saved | None":
        """Return the last saved epoch; None if there is none."""
        stored = self._files.read(f"{self._key}.{EPOCH}")
        if stored is None:
            return None
        about = stored.metadata
        self.continued = True
        site_event("continued", epoch=about.get("epoch"), step=about.get("step"))
        return stored, about

    def unusable(self, error: Exception) -> MdcError:
        """Return the error of a round that cannot continue after the saved epoch; delete it."""
        self._files.delete(self._files.paths(f"{self._key}.{EPOCH}."))
        return MdcError(
            f"the saved epoch cannot be restored: {type(error).__name__}: {error}",
            where=str(self._files.folder),
            hint="The file was deleted; asked again, the site trains the round anew",
        )

    def is_due(self) -> bool:
        """Return whether to save an epoch now: it may cost at most `SHARE` of the time."""
        self._began_at = time.monotonic()
        return self._began_at - self._saved_at >= self._cost_s / SHARE

    def write(self, saved: "Saved") -> None:
        """Save the state after an epoch; what that cost counts from the answer of `is_due`."""
        self._replace(EPOCH, model_parts(*saved))
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - self._began_at
        reach("epoch-saved", epoch=saved[1]["epoch"], path=str(self._files.folder))

    def _replace(self, kind: str, content: Content) -> None:
        """Write a file, then delete the older ones of the round."""
        try:
            written = self._files.write(f"{self._key}.{kind}", content)
        except StorageError as error:
            log(WARNING, "%s. A site that is killed starts its round anew", error)
            return
        self._files.delete([path for path in self._files.paths() if path != written])
