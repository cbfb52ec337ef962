"""What a site gives to the vocabulary of its federation: how often each token occurs there.

It is counted before there is a contract, and so before there is a kit.
"""

from pathlib import Path

from mdc_flower.data.readers.options import Reading
from mdc_flower.data.readers.token_counts import counts_csv, without_rare
from mdc_flower.data.readers.vocabulary import count_tokens
from mdc_flower.data.registry import training_texts
from mdc_flower.deployment.kits.private_files import PRIVATE, write_file
from strategies.common.errors import DataError


def count_site_tokens(
    data: str, data_root: str, reading: Reading, min_count: int, output: Path
) -> list[str]:
    """Write the counts of the tokens in a site's training texts, and return what to tell about it.

    Parameters
    ----------
    data, data_root, reading
        See `training_texts`.
    min_count
        Tokens that occur less often do not leave the site.
    output
        File to write, for its owner only; what is there is replaced.

    Raises
    ------
    ConfigError, DataError
        If the texts cannot be had, or no token is left.
    StorageError
        If the file cannot be written.
    """
    texts = training_texts(data, data_root, reading)
    found = count_tokens(texts)
    given = without_rare(found, min_count)
    if not given:
        raise DataError(
            f"no token occurs {min_count} times",
            where=data,
            hint="Give a smaller --min-count, or take part without counts",
        )
    write_file(output, counts_csv(given).encode(), PRIVATE)
    return [
        f"{output}: {len(given)} tokens of {len(texts)} training texts",
        f"withheld: {len(found) - len(given)} tokens that occur fewer than {min_count} times",
        "read the file before you send it: the rarest tokens come last, and may be names",
    ]
