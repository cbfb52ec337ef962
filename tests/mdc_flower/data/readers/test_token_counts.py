"""Token counts: their file, their sum, and the vocabulary of all sites that it gives."""

import os
import random
from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path

import pytest

from mdc_flower.data.readers import token_counts
from mdc_flower.data.readers.make_vocabulary import make_vocabulary, write_vocabulary
from mdc_flower.data.readers.token_counts import (
    counts_csv,
    merged,
    read_all_counts,
    read_counts,
    without_rare,
)
from mdc_flower.data.readers.vocabulary import Vocabulary, count_tokens
from strategies.common.errors import DataError
from strategies.common.files import StorageError

REVIEWS = Path(os.environ.get("MDC_TEST_DATA", "/nowhere")) / "sst2"


def write(path: Path, counts: Mapping[str, int]) -> Path:
    path.write_text(counts_csv(counts), "utf-8")
    return path


# The sum


def test_counts_add_up_and_their_order_does_not_matter() -> None:
    sites = [{"a": 1, "b": 2}, {"b": 3, "c": 3}, {"a": 4}]
    assert merged(sites) == {"a": 5, "b": 5, "c": 3}
    # Of a and b, which are as frequent, a is the first by its code point.
    for order in permutations(sites):
        assert Vocabulary.of_counts(merged(order), 0, 1).tokens == ("a", "b", "c")
    assert merged([]) == {}


def test_summing_leaves_the_counts_as_they_were() -> None:
    sites = [{"a": 1}, {"a": 2}]
    merged(sites)
    assert sites == [{"a": 1}, {"a": 2}]


def test_a_token_that_a_site_withholds_counts_for_the_other_sites_only() -> None:
    sites = [{"a": 5, "eva": 1}, {"a": 1, "eva": 2}]
    given = [without_rare(counts, 2) for counts in sites]
    assert given == [{"a": 5}, {"eva": 2}]
    assert merged(given) == {"a": 5, "eva": 2}
    assert [without_rare(counts, 1) for counts in sites] == sites


def test_the_smallest_count_of_all_is_one_of_the_sum() -> None:
    # Once at each of two sites is twice in all.
    counts = merged([{"a": 1, "b": 1}, {"a": 1}])
    assert Vocabulary.of_counts(counts, 0, 2).tokens == ("a",)


@pytest.fixture(scope="module")
def reviews() -> list[str]:
    """Return SST-2's training lines, a label and a text each."""
    if not REVIEWS.is_dir():
        pytest.skip("MDC_TEST_DATA does not name a folder with sst2")
    return (REVIEWS / "train.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize("num_sites", [1, 2, 3, 7])
@pytest.mark.parametrize(("size", "min_count"), [(20_000, 2), (1000, 1), (0, 5)])
def test_merged_counts_give_the_vocabulary_of_the_pooled_texts(
    reviews: list[str], tmp_path: Path, num_sites: int, size: int, min_count: int
) -> None:
    (tmp_path / "train.txt").write_text("\n".join(reviews), "utf-8")
    pooled = make_vocabulary(tmp_path, tmp_path / "pooled.txt", size, min_count, "text")

    # Sites of random sizes, to which random texts fall.
    draw = random.Random(num_sites)
    shares = [draw.random() for _ in range(num_sites)]
    homes = draw.choices(range(num_sites), shares, k=len(reviews))
    paths = []
    for site in range(num_sites):
        lines = [line for line, home in zip(reviews, homes, strict=True) if home == site]
        texts = [line.partition(" ")[2] for line in lines]
        paths.append(write(tmp_path / f"site-{site}.csv", count_tokens(texts)))
    draw.shuffle(paths)
    together = write_vocabulary(tmp_path / "all.txt", read_all_counts(paths), size, min_count)

    assert (tmp_path / "all.txt").read_bytes() == (tmp_path / "pooled.txt").read_bytes()
    assert together.contract_keys == pooled.contract_keys
    assert together.num_tokens > 900


# The file


def test_a_file_is_the_most_frequent_token_first(tmp_path: Path) -> None:
    path = write(tmp_path / "counts.csv", {"b": 1, "a": 1, "film": 12})
    assert path.read_bytes() == b"token,count\nfilm,12\na,1\nb,1\n"


@pytest.mark.parametrize("token", ['"', ",", "'", "größe", "0012", "=", "#", "\0", "🙂", "\ufeff"])
def test_every_token_comes_back_from_a_file(tmp_path: Path, token: str) -> None:
    counts = {token: 3, "a": 10**17}
    assert read_counts(write(tmp_path / "counts.csv", counts)) == counts


def test_a_file_that_a_spreadsheet_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_bytes('\ufefftoken,count\r\n"a",2\r\n'.encode())
    assert read_counts(path) == {"a": 2}


HEAD = "token,count\n"


@pytest.mark.parametrize(
    ("content", "where", "named"),
    [
        ("", ", line 1", "not a file of token counts"),
        ("word,number\na,1\n", ", line 1", "not a file of token counts"),
        ("count,token\n1,a\n", ", line 1", "not a file of token counts"),
        ("a\nb\n", ", line 1", "not a file of token counts"),  # a vocabulary
        (HEAD, "", "there are no tokens"),
        (HEAD + "a,1\nb\n", ", line 3", "not one token and its count"),
        (HEAD + "a,1,1\n", ", line 2", "not one token and its count"),
        (HEAD + "\na,1\n", ", line 2", "not one token and its count"),
        (HEAD + ",1\n", ", line 2", "not one token and its count"),
        (HEAD + "a b,1\n", ", line 2", "not one token and its count"),
        (HEAD + "B,1\n", ", line 2", "not one token and its count"),
        (HEAD + '"a\n",1\n', ", line 3", "not one token and its count"),
        (HEAD + "a,1\nb,2\na,1\n", ", line 4", "the token is repeated"),
        *((HEAD + f"a,1\nb,{count}\n", ", line 3", "the count is not valid")
          for count in ("x", "", "0", "-1", "+1", " 1", "01", "1.0", "1e3", "nan", "²", "1" * 19)),
        (HEAD + '"a,1\n', "", "the file cannot be read"),
        (HEAD + "a" * 200_000 + ",1\n", "", "the file cannot be read"),
        ((HEAD + "größe,1\n").encode("latin-1"), "", "the file cannot be read"),
        ((HEAD + "a,1\n").encode("utf-16"), "", "the file cannot be read"),
        (None, "", "the file cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_it_should_be_is_refused_by_line(
    tmp_path: Path, content: str | bytes | None, where: str, named: str
) -> None:
    path = tmp_path / "counts.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=named) as caught:
        read_counts(path)
    assert caught.value.where == f"{path}{where}"
    assert len(str(caught.value)) < 500, "no more of a file is shown than helps"


def test_a_folder_is_no_file_of_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file cannot be read"):
        read_counts(tmp_path)


def test_a_huge_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "counts.csv", {"a": 1, "b": 1})
    monkeypatch.setattr(token_counts, "MAX_BYTES", path.stat().st_size)
    assert read_counts(path) == {"a": 1, "b": 1}
    monkeypatch.setattr(token_counts, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(DataError, match="too large") as caught:
        read_counts(path)
    assert (caught.value.where, caught.value.got) == (str(path), "20 bytes")


def test_a_site_cannot_count_twice(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name, {"a": 1}) for name in ("one.csv", "other.csv"))
    assert read_all_counts([one, other]) == [{"a": 1}, {"a": 1}]
    (tmp_path / "link.csv").symlink_to(one)
    for again in (one, tmp_path / "link.csv", tmp_path / "x" / ".." / "one.csv"):
        with pytest.raises(DataError, match="given twice"):
            read_all_counts([one, other, again])


# The vocabulary's file


@pytest.mark.parametrize(("size", "min_count"), [(0, 3), (2, 1)])
def test_no_empty_vocabulary_is_written(tmp_path: Path, size: int, min_count: int) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text("old\n")
    with pytest.raises(DataError, match="the vocabulary would be empty"):
        write_vocabulary(path, [{"a": 1}, {"a": 1}], size, min_count)
    assert path.read_text() == "old\n"


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    sync: Callable[[int], None] = os.fsync
    path = tmp_path / "vocabulary.txt"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_vocabulary(path, [{"a": 1}], 0, 1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fsync", sync)
    assert write_vocabulary(path, [{"a": 1}], 0, 1) == Vocabulary.read(path)
