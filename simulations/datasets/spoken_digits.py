"""Write an ``audio-manifest:`` file for the Free Spoken Digit Dataset.

``python -m simulations.datasets.spoken_digits RECORDINGS MANIFEST.csv``, then
``mdc run --set dataset=audio-manifest:/abs/MANIFEST.csv --set audio-sample-rate=8000
--set audio-mels=40 --set model=audio-cnn --set partition=natural-id --sites 6``: one site per
speaker.

Source: Z. Jackson et al., Free Spoken Digit Dataset, v1.0.10 (2020): 6 speakers, 10 digits, 50
recordings of each at 8 kHz, named ``digit_speaker_index.wav``; indices 0 to 4 are the test split.
"""

import csv
import re
from pathlib import Path
from typing import Annotated

import typer

from strategies.common.errors import DataError, MdcError

_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]+)\.wav")
LAST_TEST_INDEX = 4


def write_manifest(recordings: Path, manifest: Path) -> int:
    """Write the manifest of a folder's recordings, with absolute paths; return their number.

    Raises
    ------
    DataError
        If the folder has no WAV files, or a name does not follow the pattern of the data set.
    """
    rows = []
    for file in sorted(recordings.absolute().glob("*.wav")):
        name = _NAME.fullmatch(file.name)
        if name is None:
            raise DataError(
                "the file name does not match the data set's pattern",
                where=str(file),
                expected="digit_speaker_index.wav",
            )
        split = "test" if int(name["index"]) <= LAST_TEST_INDEX else "train"
        rows.append([str(file), name["digit"], split, name["speaker"]])
    if not rows:
        raise DataError("the folder has no WAV files", where=str(recordings))
    with manifest.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([["path", "label", "split", "speaker"], *rows])
    return len(rows)


def main(
    recordings: Annotated[Path, typer.Argument(help="Folder with the WAV files.")],
    manifest: Annotated[Path, typer.Argument(help="CSV file to write.")],
) -> None:
    """Write the manifest of the Free Spoken Digit Dataset."""
    try:
        count = write_manifest(recordings, manifest)
    except MdcError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(
        f"{manifest} lists {count} recordings; use dataset=audio-manifest:{manifest.absolute()}"
    )


if __name__ == "__main__":
    typer.run(main)
