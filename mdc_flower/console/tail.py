"""Follow a log file that another process appends to, and limit its size."""

import shutil
from pathlib import Path

MAX_LOG_BYTES = 10_000_000


def shorten(path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Move a log's content to ``NAME.1`` if it is longer than ``max_bytes``.

    Another process may have the log open: it continues to append at the new end. Lines written
    during the move can be lost. If the move fails, the log stays as it is and no error is raised.
    """
    try:
        if path.stat().st_size > max_bytes:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            with path.open("ab") as file:
                file.truncate(0)
    except OSError:
        return


class Tail:
    """Reads the lines that are appended to a file from now on; the file need not exist yet.

    Parameters
    ----------
    path : Path
        The file. Its present content is not returned.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.is_file() else b""
        # An unfinished line counts as new.
        self._position = content.rfind(b"\n") + 1

    def new_lines(self) -> list[bytes]:
        """Return the complete lines that were appended since the last call."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            if self._path.stat().st_size < self._position:
                self._position = 0  # the file was truncated or replaced
            file.seek(self._position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.splitlines()
