"""Make a vocabulary for all sites from texts.

Usage: ``python -m mdc_flower.data.readers.make_vocabulary FOLDER VOCABULARY.txt``

It reads the training texts of a text folder, and writes their frequent tokens. Every site sees
these words, so the texts should not be confidential: use a public corpus of the same field, for
example. Without such a corpus, the sites count their own tokens with `mdc site count-tokens`.
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

    If the counts cover all tokens, it equals the vocabulary of the pooled texts, to the byte.

    Parameters
    ----------
    file
        File to write; an existing file is replaced.
    counts
        Count of each token, for each site; the order of the sites does not matter.
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
            hint="Use a smaller --min-count, or a --size above 2 (it counts padding and unknown)",
        )
    write_atomically(file, vocabulary.text.encode())
    return vocabulary


def main(
    folder: Annotated[Path, typer.Argument(help="Text folder with a file train.*")],
    file: Annotated[Path, typer.Argument(help="Vocabulary file to write.")],
    size: Annotated[
        int, typer.Option(help="Maximum number of tokens; 0 for all.")
    ] = DEFAULT.vocabulary_size,
    min_count: Annotated[int, typer.Option(help="Minimum count of a token.")] = DEFAULT.min_count,
    input_column: Annotated[str, typer.Option(help="Column that contains the texts.")] = "text",
) -> None:
    """Write a vocabulary, and print its keys for the data contract."""
    try:
        made = make_vocabulary(folder, file, size, min_count, input_column)
    except MdcError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(made.contract_keys)


if __name__ == "__main__":
    typer.run(main)
