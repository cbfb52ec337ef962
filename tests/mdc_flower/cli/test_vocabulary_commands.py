"""`mdc site count-tokens` and `mdc coordinator merge-counts`: from texts to a contract's keys."""

import stat
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import mdc_flower.cli.federation  # noqa: F401  # adds its commands to `mdc`
from mdc_flower.data.readers import make_vocabulary as module
from mdc_flower.data.readers.vocabulary import Vocabulary
from tests.mdc_flower.commands import mdc

pytestmark = pytest.mark.usefixtures("process_state")

BERLIN, LISBON = ["a a b", "eva, a"], ["b b c", "c ,"]


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    """Return the data sets of two sites, whose test texts are not to be counted."""
    specs = []
    for name, texts in (("berlin", BERLIN), ("lisbon", LISBON)):
        write_texts(tmp_path / name, texts)
        specs.append(f"text-folder:{tmp_path / name}")
    return specs


def write_texts(folder: Path, texts: list[str]) -> None:
    folder.mkdir()
    for split, lines in (("train", texts), ("test", ["secret secret"])):
        (folder / f"{split}.txt").write_text("".join(f"{i % 2} {t}\n" for i, t in enumerate(lines)))


def told(result: Result, status: int) -> str:
    assert result.exit_code == status, result.output
    return result.output


def count(spec: str, name: str, *options: str) -> str:
    return told(mdc("site", "count-tokens", spec, "--output", name, *options), 0)


def test_a_site_counts_its_training_texts_and_withholds_rare_tokens(
    sites: list[str], tmp_path: Path
) -> None:
    text = count(sites[0], "berlin.csv")
    assert (tmp_path / "berlin.csv").read_text() == "token,count\na,3\n"
    assert stat.S_IMODE((tmp_path / "berlin.csv").stat().st_mode) == 0o600
    assert "berlin.csv: 1 tokens from 2 training texts" in text
    assert "withheld: 3 tokens that occur fewer than 2 times" in text
    assert "Read the file before you send it" in text
    assert "eva" not in text
    count(sites[0], "berlin.csv", "--min-count", "1")
    assert (tmp_path / "berlin.csv").read_text() == 'token,count\na,3\n",",1\nb,1\neva,1\n'


def test_the_merged_vocabulary_is_that_of_the_pooled_texts(
    sites: list[str], tmp_path: Path
) -> None:
    names = ["berlin.csv", "lisbon.csv"]
    for spec, name in zip(sites, names, strict=True):
        count(spec, name, "--min-count", "1")
    write_texts(tmp_path / "pooled", BERLIN + LISBON)
    for options in ([], ["--size", "5"], ["--min-count", "1"], ["--min-count", "3"]):
        pooled = CliRunner().invoke(_app(), [*options, "pooled", "pooled.txt"])
        assert pooled.exit_code == 0, pooled.output
        for order in (names, names[::-1]):
            merge = ["coordinator", "merge-counts", *order, "--output", "vocabulary.txt"]
            assert told(mdc(*merge, *options), 0) == pooled.output
            made = (tmp_path / "vocabulary.txt").read_bytes()
            assert made == (tmp_path / "pooled.txt").read_bytes()
    assert made == b"a\nb\n"


def test_what_is_printed_are_the_contracts_keys(sites: list[str], tmp_path: Path) -> None:
    count(sites[1], "lisbon.csv")
    text = told(mdc("coordinator", "merge-counts", "lisbon.csv", "--output", "v.txt"), 0)
    digest = Vocabulary(("b", "c")).sha256
    assert text == f'num-tokens = 4\nvocabulary = "{digest}"\n'
    assert Vocabulary.read(tmp_path / "v.txt").sha256 == digest


def test_columns_and_a_root_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("review\na a\n")
    spec, root = "text-folder:.", str(tmp_path)
    count(spec, "counts.csv", "--data-root", root, "--input-column", "review")
    assert (tmp_path / "counts.csv").read_text() == "token,count\na,2\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["digits"], "mdc-flower does not tokenize"),
        (["text-folder:texts"], "the path is not absolute"),
        (["text-folder:/nowhere/at/all"], "there is no file train.*"),
        (["{berlin}", "--min-count", "4"], "no token occurs 4 times"),
        (["{berlin}", "--min-count", "0"], "--min-count"),
        (["{berlin}", "--output", "none/counts.csv"], "--output: there is no such folder"),
        (["{berlin}", "--output", "{folder}"], "--output: this is a folder"),
    ],
)
def test_a_site_that_cannot_count_leaves_no_file(
    sites: list[str], tmp_path: Path, arguments: list[str], text: str
) -> None:
    filled = [a.format(berlin=sites[0], folder=tmp_path) for a in arguments]
    output = told(mdc("site", "count-tokens", "--output", "counts.csv", *filled), 2)
    assert text in " ".join(output.split())
    assert not list(tmp_path.rglob("*counts.csv*"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["good.csv", "bad.csv"], "bad.csv, line 2: the count is not valid (got '-1'"),
        (["good.csv", "none.csv"], "none.csv: the file cannot be read"),
        (["good.csv", "good.csv"], "good.csv: the file is given twice"),
        (["good.csv", "--min-count", "3"], "the vocabulary would be empty"),
        (["good.csv", "--size", "-1"], "--size"),
        (["good.csv", "--output", "none/v.txt"], "--output: there is no such folder"),
        ([], "COUNTS"),
    ],
)
def test_counts_that_cannot_be_merged_leave_no_vocabulary(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    (tmp_path / "good.csv").write_text("token,count\na,2\n")
    (tmp_path / "bad.csv").write_text("token,count\na,-1\n")
    merge = ["coordinator", "merge-counts", "--output", "v.txt", *arguments]
    assert text in " ".join(told(mdc(*merge), 2).split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "good.csv"]


def _app() -> typer.Typer:
    """Return `python -m mdc_flower.data.readers.make_vocabulary` as a command."""
    app = typer.Typer()
    app.command()(module.main)
    return app
