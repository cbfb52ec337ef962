"""Follow a file of lines that another process appends to."""

from pathlib import Path


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
            file.seek(self._position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.splitlines()
