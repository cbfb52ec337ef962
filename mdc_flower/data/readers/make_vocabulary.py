"""Make the vocabulary that all sites share from texts.

Usage: ``python -m mdc_flower.data.readers.make_vocabulary FOLDER VOCABULARY.txt``

It reads the training texts of a text folder, and writes their frequent tokens. These are words of
the texts, so the folder should be one whose words may be known to every site, such as a public
corpus of the same field. Sites that have no such corpus count their own tokens: `mdc site
count-tokens`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mdc_flower.data.readers.options import TextReading
from mdc_flower.data.readers.text import train_texts
from mdc_flower.data.readers.token_counts import merged
from mdc_flower.data.readers.vocabulary import Vocabulary, count_tokens
from strategies.common.errors import DataError, MdcError
from strategies.common.files import write_atomically

DEFAULT = TextReading()


def make_vocabulary(folder: Path, file: Path, size: int, min_count: int, column: str) -> Vocabulary:
    """Write the vocabulary of a text folder's training texts to a file, and return it.

    Raises
    ------
    DataError
        If there are no training texts, or they cannot be read, or no token is left.
    """
    counts = count_tokens(train_texts(str(folder.absolute()), column))
    return write_vocabulary(file, [counts], size, min_count)


def write_vocabulary(
    file: Path, counts: Sequence[Mapping[str, int]], size: int, min_count: int
) -> Vocabulary:
    """Write the vocabulary of the sites' token counts to a file, and return it.

    It is the one of the pooled texts, to the byte, if the counts are those of all their tokens.

    Parameters
    ----------
    file
        File to write; what is there is replaced.
    counts
        How often each token occurs, for each site; their order does not matter.
    size, min_count
        See `Vocabulary.of_counts`.

    Raises
    ------
    DataError
        If no token is left.
    StorageError
        If the file cannot be written.
    """
    vocabulary = Vocabulary.of_counts(merged(counts), size, min_count)
    if not vocabulary.tokens:
        raise DataError(
            "the vocabulary would be empty",
            where=str(file),
            hint="Give a smaller --min-count, or a --size above 2: padding and unknown are in it",
        )
    write_atomically(file, vocabulary.text.encode())
    return vocabulary


def main(
    folder: Annotated[Path, typer.Argument(help="Text folder, with train.*")],
    file: Annotated[Path, typer.Argument(help="Vocabulary to write.")],
    size: Annotated[int, typer.Option(help="Most tokens; 0 for all.")] = DEFAULT.vocabulary_size,
    min_count: Annotated[int, typer.Option(help="Rarer tokens are left out.")] = DEFAULT.min_count,
    input_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
) -> None:
    """Write a vocabulary, and print what a data contract says about it."""
    try:
        made = make_vocabulary(folder, file, size, min_count, input_column)
    except MdcError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(made.contract_keys)


if __name__ == "__main__":
    typer.run(main)
