"""Token counts of a site, in a file that its staff can read before they send it.

The file is CSV in UTF-8: the line ``token,count``, then one line per token, the most frequent token
first. The sum of the sites' files gives the vocabulary of the pooled texts, so no text has to leave
a site.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from mdc_flower.data.readers.vocabulary import by_frequency, tokens_of
from strategies.common.errors import DataError

HEAD = ["token", "count"]
HINT = "`mdc site count-tokens` writes such files. Ask the site for a new file"

MAX_BYTES = 256 * 1024**2
"""Maximum size of a file of counts: about ten million tokens."""

_COUNT = re.compile("[1-9][0-9]{0,17}")
_SHOWN_CHARS = 50


def merged(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of the counts; the order of ``counts`` does not matter."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def without_rare(counts: Mapping[str, int], min_count: int) -> dict[str, int]:
    """Return the counts that are at least ``min_count``; rare tokens are names and numbers."""
    return {token: count for token, count in counts.items() if count >= min_count}


def counts_csv(counts: Mapping[str, int]) -> str:
    """Return the content of a file of counts."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows((token, counts[token]) for token in by_frequency(counts))
    return lines.getvalue()


def read_counts(path: Path) -> dict[str, int]:
    """Return the counts in a file.

    Raises
    ------
    DataError
        If the file cannot be read, is larger than `MAX_BYTES`, has a wrong first line or no
        line after it, if a line is not one token and its count, or if a token is repeated. The
        error names the line.
    """
    counts: dict[str, int] = {}
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(
                "the file is too large for token counts",
                where=str(path),
                got=f"{size} bytes",
                expected=f"at most {MAX_BYTES}",
                hint=HINT,
            )
        with path.open(newline="", encoding="utf-8-sig") as lines:
            for where, token, count in _rows(path, lines):
                if token in counts:
                    raise DataError("the token is repeated", where=where, got=token)
                counts[token] = count
    except (OSError, ValueError, csv.Error) as error:  # bad UTF-8 is a ValueError
        raise DataError(f"the file cannot be read: {error}", where=str(path)) from None
    if not counts:
        raise DataError("there are no tokens", where=str(path), hint=HINT)
    return counts


def read_all_counts(paths: Sequence[Path]) -> list[dict[str, int]]:
    """Return the counts in each file.

    Raises
    ------
    DataError
        If a file is given twice, so that its site would count twice; see also `read_counts`.
    """
    seen: set[Path] = set()
    for path in map(Path.resolve, paths):
        if path in seen:
            raise DataError("the file is given twice", where=str(path))
        seen.add(path)
    return [read_counts(path) for path in paths]


def _rows(path: Path, lines: TextIO) -> Iterator[tuple[str, str, int]]:
    """Yield the place of each row, its token and its count."""
    rows = csv.reader(lines, strict=True)
    head: list[str] = next(rows, [])
    if head != HEAD:
        raise DataError(
            "this is not a file of token counts",
            where=f"{path}, line 1",
            got=",".join(head)[:_SHOWN_CHARS],
            expected=",".join(HEAD),
            hint=HINT,
        )
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if len(row) != len(HEAD) or tokens_of(row[0]) != [row[0]]:
            raise DataError(
                "the line is not one token and its count",
                where=where,
                got=",".join(row)[:_SHOWN_CHARS],
                hint=HINT,
            )
        token, count = row
        if not _COUNT.fullmatch(count):
            raise DataError(
                "the count is not valid",
                where=where,
                got=count[:_SHOWN_CHARS],
                expected="a positive whole number with at most 18 digits",
                hint=HINT,
            )
        yield where, token, int(count)
