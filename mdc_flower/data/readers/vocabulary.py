"""The tokenizer, and `Vocabulary`, which maps tokens to numbers."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from strategies.common.errors import DataError

PADDING, UNKNOWN = 0, 1
NUM_SPECIAL = 2
"""Numbers for special tokens: padding, and any token that is not in the vocabulary."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


def tokens_of(text: str) -> list[str]:
    """Return the tokens of a text: runs of letters, digits and underscores; other signs singly.

    The text is first converted to Unicode's form NFKC and to lower case. Languages without spaces
    between words need their own tokenizer, in a data set given as ``module:function``.
    """
    lower = unicodedata.normalize("NFKC", text).lower()
    # Lower case can undo NFKC: the dot of a Turkish capital i becomes a separate sign.
    return _TOKEN.findall(unicodedata.normalize("NFKC", lower))


def count_tokens(texts: Iterable[str]) -> Counter[str]:
    """Return the count of each token in the texts."""
    return Counter(token for text in texts for token in tokens_of(text))


def by_frequency(counts: Mapping[str, int]) -> list[str]:
    """Return the tokens by descending count; equal counts are ordered by code point."""
    return sorted(counts, key=lambda token: (-counts[token], token))


@dataclass(frozen=True)
class Vocabulary:
    """The known tokens; the first has number 2, after padding (0) and unknown (1).

    The file is UTF-8 text with one token per line, in this order: line n has number n + 1.
    """

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], max_size: int, min_count: int) -> Self:
        """Return the vocabulary of texts, which must all be training texts; see `of_counts`."""
        return cls.of_counts(count_tokens(texts), max_size, min_count)

    @classmethod
    def of_counts(cls, counts: Mapping[str, int], max_size: int, min_count: int) -> Self:
        """Return the vocabulary of the most frequent tokens, in the order of `by_frequency`.

        Parameters
        ----------
        counts
            Count of each token.
        max_size
            Maximum size, including padding and unknown; 0 for no limit.
        min_count
            Minimum count of a token.
        """
        frequent = [token for token in by_frequency(counts) if counts[token] >= min_count]
        limit = max(0, max_size - NUM_SPECIAL) if max_size else None
        return cls(tuple(frequent[:limit]))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the vocabulary in a file.

        Raises
        ------
        DataError
            If the file cannot be read, or a line is empty, contains more than one token, or is
            repeated. The error names the line.
        """
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the vocabulary cannot be read: {error}", where=str(path)) from None
        seen: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if tokens_of(line) != [line]:
                raise DataError("the line is not one token", where=where, got=line)
            if line in seen:
                raise DataError(f"the token repeats line {seen[line]}", where=where, got=line)
            seen[line] = number
        if not seen:
            raise DataError("the vocabulary is empty", where=str(path))
        return cls(tuple(lines))

    @property
    def text(self) -> str:
        """Return the content of the vocabulary file."""
        return "".join(f"{token}\n" for token in self.tokens)

    @property
    def sha256(self) -> str:
        """Return the digest by which sites check that they have the same vocabulary."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def num_tokens(self) -> int:
        """Return the size of the vocabulary, including padding and unknown."""
        return NUM_SPECIAL + len(self.tokens)

    @property
    def contract_keys(self) -> str:
        """Return the data contract's keys for this vocabulary, as lines of TOML."""
        return f'num-tokens = {self.num_tokens}\nvocabulary = "{self.sha256}"'

    def encode(self, texts: Sequence[str], length: int) -> NDArray[np.int64]:
        """Return the numbers of each text's first tokens, shape ``(len(texts), length)``.

        Shorter texts end with padding; a text without tokens is all padding.
        """
        numbers = {token: number for number, token in enumerate(self.tokens, NUM_SPECIAL)}
        encoded = np.full((len(texts), length), PADDING, dtype=np.int64)
        for row, text in zip(encoded, texts, strict=True):
            known = [numbers.get(token, UNKNOWN) for token in tokens_of(text)[:length]]
            row[: len(known)] = known
        return encoded
