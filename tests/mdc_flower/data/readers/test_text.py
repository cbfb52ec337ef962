"""Texts: files of every kind, tokens and their numbers, and what is refused by row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mdc_flower.data import DataSet, load_dataset
from mdc_flower.data.readers import text
from mdc_flower.data.readers.make_vocabulary import make_vocabulary
from mdc_flower.data.readers.options import Columns, Reading, TextReading
from mdc_flower.data.readers.text import load_text_folder
from mdc_flower.data.readers.vocabulary import Vocabulary, tokens_of
from mdc_flower.data.registry import training_texts
from strategies.common.errors import ConfigError, DataError

READING = TextReading(length=4, min_count=1)
COLUMNS = Columns()


# Tokens and their numbers


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        ("The film, it's GOOD!", ["the", "film", ",", "it", "'", "s", "good", "!"]),
        ("a_1 2-3\n\t.", ["a_1", "2", "-", "3", "."]),
        ("ﬁn  Größe é", ["fin", "größe", "é"]),  # a ligature, and an accent apart
        ("", []),
        (" \n", []),
    ],
)
def test_a_text_is_cut_into_words_and_signs(words: str, tokens: list[str]) -> None:
    assert tokens_of(words) == tokens


@pytest.mark.parametrize("odd", ["İstanbul", "ǅ", "ﬀ ϴ Ω", "한글 中文", "🙂👍🏽", "a\u0301\u0301"])
def test_a_token_is_its_own_only_token(odd: str) -> None:
    tokens = tokens_of(odd)
    assert tokens
    assert [tokens_of(token) for token in tokens] == [[token] for token in tokens]


def test_the_most_frequent_tokens_come_first_and_equal_ones_by_name() -> None:
    texts = ["b a c", "b a", "b z"]  # b 3, a 2, c 1, z 1
    assert Vocabulary.of(texts, 0, 1).tokens == ("b", "a", "c", "z")
    assert Vocabulary.of(texts, 0, 2).tokens == ("b", "a")
    # Five numbers, of which padding and unknown take two.
    assert Vocabulary.of(texts, 5, 1).tokens == ("b", "a", "c")
    assert Vocabulary.of(texts, 1, 1).tokens == ()


def test_texts_become_numbers_of_one_length() -> None:
    known = Vocabulary(("b", "a"))
    encoded = known.encode(["a b a", "b x", "", "a a a a a b"], 4)
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [[3, 2, 3, 0], [2, 1, 0, 0], [0] * 4, [3] * 4]
    assert known.num_tokens == 4


def test_a_vocabulary_comes_back_from_its_file(tmp_path: Path) -> None:
    known = Vocabulary(("größe", "!", "a"))
    path = tmp_path / "vocabulary.txt"
    path.write_bytes(known.text.encode())
    again = Vocabulary.read(path)
    assert again == known
    assert again.sha256 == known.sha256
    assert Vocabulary(("!", "größe", "a")).sha256 != known.sha256


@pytest.mark.parametrize(
    ("content", "where", "named"),
    [
        (b"a\n\nb\n", ", line 2", "not one token"),
        (b"a\nb c\n", ", line 2", "not one token"),
        (b"a\nB\n", ", line 2", "not one token"),
        (b"a\nb\na\n", ", line 3", "the token repeats line 1"),
        (b"", "", "the vocabulary is empty"),
        (b"\xff\xfe", "", "the vocabulary cannot be read"),
        (None, "", "the vocabulary cannot be read"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_line(
    tmp_path: Path, content: bytes | None, where: str, named: str
) -> None:
    path = tmp_path / "vocabulary.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        Vocabulary.read(path)
    assert caught.value.where == f"{path}{where}"


# Folders

TRAIN = [("good film", "pos"), ('bad "film", bad', "neg"), ("good", "pos")]
TEST = [("bad bad new", "neg")]
Rows = Sequence[tuple[Any, ...]]


def write_csv(path: Path, rows: Rows, head: str = "text,label") -> None:
    quoted = [",".join('"' + str(v).replace('"', '""') + '"' for v in row) for row in rows]
    path.write_text("\n".join([head, *quoted]) + "\n", encoding="utf-8-sig")


def write_tsv(path: Path, rows: Rows, head: str = "text\tlabel") -> None:
    path.write_text("\n".join([head, *("\t".join(map(str, row)) for row in rows)]) + "\n")


def write_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(f"{label} {words}\n" for words, label in rows))


def write_parquet(path: Path, rows: Rows) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    pyarrow.parquet.write_table(pa.table(dict(zip(["text", "label"], columns, strict=True))), path)


WRITERS = {"csv": write_csv, "tsv": write_tsv, "txt": write_lines, "parquet": write_parquet}


def folder_of(path: Path, kind: str, train: Rows = TRAIN, test: Rows = TEST) -> Path:
    path.mkdir(exist_ok=True)
    WRITERS[kind](path / f"train.{kind}", train)
    WRITERS[kind](path / f"test.{kind}", test)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "texts", "csv")


def load(folder: Path, reading: TextReading = READING, columns: Columns = COLUMNS) -> DataSet:
    return load_text_folder(str(folder), reading, columns).checked()


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_says_the_same(tmp_path: Path, kind: str) -> None:
    data = load(folder_of(tmp_path / "texts", kind))
    # Of the training texts: " 2, bad 2, film 2, good 2, "," 1, in the order of these signs.
    assert data.class_names == ["neg", "pos"]
    assert data.train.inputs.tolist() == [[5, 4, 0, 0], [3, 2, 4, 2], [5, 0, 0, 0]]
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.test.inputs.tolist() == [[3, 3, 1, 0]]
    assert data.test.labels.tolist() == [0]
    assert (data.num_tokens, data.input_shape) == (7, (4,))
    assert data.vocabulary == Vocabulary(('"', "bad", "film", "good", ",")).sha256
    assert (data.name, tuple(data.mean), data.train.groups) == ("text-folder", (), None)


def test_the_two_splits_may_be_of_different_kinds(tmp_path: Path, folder: Path) -> None:
    (folder / "test.csv").unlink()
    write_lines(folder / "test.txt", TEST)
    assert load(folder).test.inputs.tolist() == [[3, 3, 1, 0]]


def test_columns_are_found_by_their_names_and_groups_are_kept(tmp_path: Path) -> None:
    rows = [("x", "yes", "a b", "eva"), ("y", "no", "c", "adam")]
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv", rows, head="id,verdict,review,author")
    data = load(tmp_path, columns=Columns("review", "verdict", "author"))
    assert data.class_names == ["no", "yes"]
    assert data.train.labels.tolist() == [1, 0]
    assert data.train.groups is not None
    assert data.train.groups.tolist() == ["eva", "adam"]


def test_labels_of_numbers_are_classes_by_their_digits(tmp_path: Path) -> None:
    data = load(folder_of(tmp_path / "texts", "parquet", [("a", 1), ("b", 0)], [("a", 1)]))
    assert data.class_names == ["0", "1"]
    assert data.train.labels.tolist() == [1, 0]


def test_a_text_may_be_empty_and_is_padding_then(tmp_path: Path) -> None:
    data = load(folder_of(tmp_path / "texts", "csv", [("", "no"), ("a", "yes")], [("", "no")]))
    assert data.train.inputs.tolist() == [[0] * 4, [2, 0, 0, 0]]


def test_the_settings_reach_the_folder_by_its_name(folder: Path) -> None:
    reading = Reading(text=TextReading(length=2, vocabulary_size=4, min_count=2))
    data = load_dataset(f"text-folder:{folder}", reading=reading)
    assert data.train.inputs.tolist() == [[1, 1], [3, 2], [1, 0]]
    assert data.num_tokens == 4


def test_a_vocabularys_file_goes_before_the_training_texts(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text("new\nbad\n")
    data = load(folder, TextReading(4, str(path)))
    assert data.train.inputs.tolist() == [[1, 1, 0, 0], [3, 1, 1, 1], [1, 0, 0, 0]]
    assert data.test.inputs.tolist() == [[3, 3, 2, 0]]
    assert (data.num_tokens, data.vocabulary) == (4, Vocabulary(("new", "bad")).sha256)
    path.write_text("bad\nnew\n")  # as long as before
    assert load(folder, TextReading(4, str(path))).test.inputs.tolist() == [[2, 2, 3, 0]]


def test_test_texts_give_no_token(tmp_path: Path) -> None:
    one = load(folder_of(tmp_path / "one", "csv"))
    other = load(folder_of(tmp_path / "other", "csv", TRAIN, [("quite another text", "pos")] * 9))
    assert one.vocabulary == other.vocabulary


def test_a_vocabulary_is_made_of_a_folders_training_texts(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    made = make_vocabulary(folder, path, size=0, min_count=1, column="text")
    assert Vocabulary.read(path) == made
    assert made.sha256 == load(folder).vocabulary


@pytest.mark.parametrize("kind", WRITERS)
def test_a_vocabulary_is_of_the_texts_that_are_trained_on(tmp_path: Path, kind: str) -> None:
    texts = folder_of(tmp_path / "texts", kind)
    words = [words for words, _ in TRAIN]
    assert list(training_texts(f"text-folder:{texts}")) == words
    assert list(training_texts("text-folder:texts", str(tmp_path))) == words


def test_a_vocabulary_needs_neither_labels_nor_test_texts(tmp_path: Path) -> None:
    # An empty text, as a run may have it, is no missing label.
    (tmp_path / "train.csv").write_text('review,id\nb a,1\n"",2\nb,3\n')
    made = make_vocabulary(tmp_path, tmp_path / "words.txt", 0, 1, "review")
    assert made.tokens == ("b", "a")
    reading = Reading(columns=Columns("review"))
    spec = f"text-folder:{tmp_path}"
    assert list(training_texts(spec, reading=reading)) == ["b a", "", "b"]
    with pytest.raises(DataError, match="the column is missing"):
        training_texts(spec)


@pytest.mark.parametrize(
    "spec",
    ["digits", "image-folder:/x", "audio-folder:/x", "my:data", "text-folder", "contract:{}"],
)
def test_only_what_is_tokenized_here_has_texts(spec: str) -> None:
    with pytest.raises(ConfigError, match="mdc-flower does not tokenize") as caught:
        training_texts(spec)
    assert caught.value.got == spec
    assert caught.value.expected == "text-folder:/abs/path or hf:NAME"


def test_texts_are_read_once_and_mapped_from_then_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(folder)

    def refuse(*args: object) -> None:
        raise AssertionError("the texts were read again")

    monkeypatch.setattr(text, "read_table", refuse)
    again = load(folder)
    assert isinstance(again.train.inputs, np.memmap)
    assert np.array_equal(again.train.inputs, before.train.inputs)
    with pytest.raises(AssertionError, match="read again"):
        load(folder, TextReading(length=5, min_count=1))
    write_csv(folder / "test.csv", [*TEST, *TEST])
    with pytest.raises(AssertionError, match="read again"):
        load(folder)


# Refused


@pytest.mark.parametrize("path", ["texts", "~/texts", ""])
def test_a_relative_path_is_refused(path: str) -> None:
    with pytest.raises(DataError, match="not absolute") as caught:
        load_text_folder(path, READING, COLUMNS)
    assert (caught.value.where, caught.value.got) == ("text-folder", path)


def test_a_relative_vocabulary_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="not absolute") as caught:
        load(folder, TextReading(vocabulary="words.txt"))
    assert (caught.value.where, caught.value.got) == ("vocabulary", "words.txt")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_and_a_doubled_split_are_named(folder: Path, split: str) -> None:
    write_lines(folder / f"{split}.txt", TRAIN)
    with pytest.raises(DataError, match=f"more than one file {split}") as caught:
        load(folder)
    assert caught.value.got == [f"{split}.csv", f"{split}.txt"]
    (folder / f"{split}.txt").unlink()
    (folder / f"{split}.csv").unlink()
    with pytest.raises(DataError, match=f"no file {split}") as caught:
        load(folder)
    assert caught.value.where == str(folder)


@pytest.mark.parametrize(
    ("name", "content", "where", "named"),
    [
        ("train.csv", "", "", "the column is missing"),
        ("train.csv", "text,label\n", "", "there are no texts"),
        ("train.csv", "words,label\na,x\n", "", "the column is missing"),
        ("train.csv", "text,label\na,x\nb\n", ", row 2", "the number of values differs"),
        ("train.csv", "text,label\na,x\nb,\n", ", row 2", "the row has no label"),
        ("train.csv", 'text,label\n"a,x\n', "", "the file cannot be read"),
        ("train.tsv", "text\tlabel\na\tb\tx\n", ", row 1", "the number of values differs"),
        ("train.txt", "\n\n", "", "there are no texts"),
        ("train.txt", "x a\n y\n", ", row 2", "the row has no label"),
        ("train.txt", b"x \xff\n", "", "the file cannot be read"),
        ("train.parquet", b"PAR1", "", "the file cannot be read"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused_by_row(
    folder: Path, name: str, content: str | bytes, where: str, named: str
) -> None:
    (folder / "train.csv").unlink()
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=named) as caught:
        load(folder)
    assert caught.value.where == f"{path}{where}"


def test_a_missing_column_is_refused_with_the_key_and_those_that_are_there(folder: Path) -> None:
    with pytest.raises(DataError, match="the column is missing") as caught:
        load(folder, columns=Columns(groups="author"))
    assert (caught.value.got, caught.value.expected) == (["text", "label"], "'author'")
    assert "group-column" in caught.value.hint


def test_numbers_in_the_place_of_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not contain texts") as caught:
        load(folder_of(tmp_path / "texts", "parquet", [(1, "x"), (2, "y")]))
    assert caught.value.got == "int"


def test_a_missing_label_in_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the row has no label") as caught:
        load(folder_of(tmp_path / "texts", "parquet", [("a", "x"), ("b", None)]))
    assert caught.value.where.endswith("train.parquet, row 2")


def test_lines_have_no_groups(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no groups"):
        load(folder_of(tmp_path / "texts", "txt"), columns=Columns(groups="author"))


@pytest.mark.parametrize(
    ("train", "test", "named"),
    [
        ([("a", "x"), ("b", "x")], [("a", "x")], "there are fewer than two classes"),
        (TRAIN, [("a", "odd")], "a class without training examples"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    tmp_path: Path, train: Rows, test: Rows, named: str
) -> None:
    with pytest.raises(DataError, match=named) as caught:
        load(folder_of(tmp_path / "texts", "csv", train, test))
    assert caught.value.where == str(tmp_path / "texts")


def test_a_long_text_of_csv_is_refused_by_the_reader_and_not_cut(folder: Path) -> None:
    write_csv(folder / "train.csv", [("a " * 100_000, "x"), ("b", "y")])
    with pytest.raises(DataError, match="field larger than field limit"):
        load(folder)
