"""A site's token counts, its contribution to the federation's vocabulary.

The counting takes place before the contract exists, so it needs no kit.
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
    """Write the token counts of a site's training texts; return lines to print about them.

    Parameters
    ----------
    data, data_root, reading
        See `training_texts`.
    min_count
        Minimum count; rarer tokens are not written.
    output
        File to write, readable by its owner only; an existing file is replaced.

    Raises
    ------
    ConfigError, DataError
        If the texts cannot be read, or no token is left.
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
            hint="Lower --min-count, or take part without counts",
        )
    write_file(output, counts_csv(given).encode(), PRIVATE)
    return [
        f"{output}: {len(given)} tokens from {len(texts)} training texts",
        f"withheld: {len(found) - len(given)} tokens that occur fewer than {min_count} times",
        "Read the file before you send it. The rarest tokens come last and may be names",
    ]
