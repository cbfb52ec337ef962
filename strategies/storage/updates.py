"""Stores the accepted updates of the open round: on disk before they count, averaged from there.

A damaged file is renamed and its site is asked again. A disk that cannot be written ends the run;
all updates accepted so far stay intact.
"""

import hashlib
from logging import WARNING
from pathlib import Path

from strategies.aggregation.averaging import Update
from strategies.common.files import (
    DamagedError,
    remove_temporary,
    seal,
    sealed_files,
    writing,
)
from strategies.common.log import log
from strategies.storage.model_files import SealedArrays, model_parts

SUFFIX = ".safetensors"


class StoredUpdates:
    """Updates as sealed files in a folder; a changed file is found when it is read.

    Parameters
    ----------
    folder : Path
        Folder for the updates of the open round; created if missing.
    archive : Path or None
        Folder for the updates of finished rounds, with one folder per round; None deletes them.
    """

    def __init__(self, folder: Path, archive: Path | None = None) -> None:
        self._folder = folder
        self._archive = archive
        self._plan_id = ""
        self._files: dict[str, SealedArrays] = {}

    def open(self, plan_id: str) -> None:
        """Find updates of this plan that an earlier process accepted; delete all others."""
        self._plan_id, self._files = plan_id, {}
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(self._folder)
            for path in list(sealed_files(self._folder, SUFFIX)):
                if path.name.split(".")[0] != plan_id:
                    path.unlink()
                elif update := self._readable(file := SealedArrays(path)):
                    self._files[update.site] = file

    def add(self, update: Update) -> None:
        """Write an update to disk.

        Raises
        ------
        StorageError
            If the update cannot be written; it does not count then.
        """
        about = {
            "site": update.site,
            "num-examples": update.num_examples,
            "metrics": dict(update.metrics),
            "pace": update.pace,
            "sent-bytes": update.sent_bytes,
            "received-bytes": update.received_bytes,
            "began-anew": update.began_anew,
        }
        stem = f"{self._plan_id}.{hashlib.sha256(update.site.encode()).hexdigest()[:12]}"
        path = seal(self._folder, stem, SUFFIX, model_parts(update.arrays, about))
        self._files[update.site] = SealedArrays(path, intact=True)

    def sites(self) -> list[str]:
        """Return the sites whose updates are on disk."""
        return sorted(self._files)

    def updates(self) -> list[Update]:
        """Return the updates with intact files, in site order; arrays stay on disk.

        A file is compared with its checksum only if this process has not written it, or if it has
        been written or replaced since then.
        """
        updates = {site: self._readable(file) for site, file in sorted(self._files.items())}
        self._files = {site: file for site, file in self._files.items() if updates[site]}
        return [update for update in updates.values() if update]

    def close(self, round_number: int) -> None:
        """Delete the updates, or move them to the archive."""
        with writing(self._folder):
            for path in (file.path for file in self._files.values()):
                if self._archive is None:
                    path.unlink(missing_ok=True)
                else:
                    target = self._archive / f"round-{round_number:05d}"
                    target.mkdir(parents=True, exist_ok=True)
                    path.rename(target / path.name)
        self._files = {}

    def _readable(self, file: SealedArrays) -> Update | None:
        try:
            file.check()
            about = file.metadata
            return Update(
                about["site"],
                about["num-examples"],
                file,
                about["metrics"],
                about["pace"],
                # Missing in files of earlier versions.
                about.get("sent-bytes", 0),
                about.get("received-bytes", 0),
                about.get("began-anew", False),
            )
        except DamagedError as error:
            log(WARNING, "%s. It is set aside and ignored", error)
            file.path.rename(file.path.with_name(f"{file.path.name}.damaged"))
            return None
