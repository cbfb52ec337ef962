"""Follow a file of lines that another process appends to, and keep it from growing for ever."""

import shutil
from pathlib import Path

MAX_LOG_BYTES = 10_000_000


def shorten(path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Move what a log holds to ``NAME.1`` if it has become too long; it may be open elsewhere.

    A process that appends to it goes on at its new end. Lines that come in this very moment can
    be lost. On failure the log stays as it is: no log is worth what it is the log of.
    """
    try:
        if path.stat().st_size > max_bytes:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            with path.open("ab") as file:
                file.truncate(0)
    except OSError:
        return


class Tail:
    """The lines that come to a file from now on; the file need not be there yet.

    Parameters
    ----------
    path : Path
        The file. What it holds now is not returned.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.is_file() else b""
        # A line that its writer has not finished counts as new.
        self._position = content.rfind(b"\n") + 1

    def new_lines(self) -> list[bytes]:
        """Return the whole lines since the last call."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            if self._path.stat().st_size < self._position:
                self._position = 0  # the file was shortened, or is another one
            file.seek(self._position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.splitlines()
