"""``python -m mdc_flower.data.make_vocabulary FOLDER VOCABULARY.txt``: what all sites share.

It reads the training texts of a text folder, and writes their frequent tokens. These are words of
the texts, so the folder should be one whose words may be known to every site, such as a public
corpus of the same field.
"""

from pathlib import Path
from typing import Annotated

import typer

from mdc_flower.data.class_folders import absolute
from mdc_flower.data.reading import Columns, TextReading
from mdc_flower.data.tables import read_table
from mdc_flower.data.text import train_file
from mdc_flower.data.vocabulary import Vocabulary
from strategies.errors import MdcError
from strategies.journal.files import write_atomically

DEFAULT = TextReading()


def make_vocabulary(folder: Path, file: Path, size: int, min_count: int, column: str) -> Vocabulary:
    """Write the vocabulary of a text folder's training texts to a file, and return it.

    Raises
    ------
    DataError
        If there are no training texts, or they cannot be read.
    """
    train = train_file(absolute(str(folder.absolute()), "text-folder"))
    texts = read_table(train, Columns(inputs=column, labels=column)).inputs
    vocabulary = Vocabulary.of(texts, size, min_count)
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
    typer.echo(f'num-tokens = {made.num_tokens}\nvocabulary = "{made.sha256}"')


if __name__ == "__main__":
    typer.run(main)
