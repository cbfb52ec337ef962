"""The numbers in README and docs are those of the committed results."""

import re
from pathlib import Path

import pytest
from PIL import Image

from simulations.pages.drawing import CURVES, DRAWN_FROM, EXCHANGES, results_digest
from simulations.pages.published import BLOCK, RESULTS, documents, refreshed
from simulations.results.result_files import COMPARISON, write_results
from simulations.results.summary import summary_table
from strategies.common.errors import DataError
from tests.simulations.made_up import outcome, results, tuned

MEASURED = ("bench.md", "gpu.md")
"""Pages about measurements that are no comparisons."""

DRAW = "python -m simulations.pages.published draws it"

DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)")
CODE_OR_LINK = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)

ARMS = ("centralized", "co-learning", "fedavg", "one-site")

MADE = results(
    {key: {1: outcome((1, value)), 2: outcome((1, value + 0.1))} for key, value in zip(
        ARMS, (0.8, 0.75, 0.6, 0.5), strict=True
    )}
)  # fmt: skip


def drawn_from(picture: Path) -> str:
    """Return the digest of the results that a picture says it was drawn from."""
    with Image.open(picture) as image:
        return str(image.info[DRAWN_FROM])


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_table_of_results_in_the_documentation_is_what_the_results_say(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert refreshed(text, path.parent) == text, "python -m simulations.pages.published writes it"


def test_every_decimal_number_in_the_text_about_results_stands_in_one_of_its_tables() -> None:
    paths = [path for path in documents() if RESULTS in path.parents and path.name not in MEASURED]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    shown = {
        found
        for text in texts
        for block in BLOCK.finditer(text)
        for found in DECIMAL.findall(block[0])
    }
    told = {
        number
        for text in texts
        for number in DECIMAL.findall(CODE_OR_LINK.sub("", BLOCK.sub("", text)))
    }
    assert told
    assert not {number for number in told if not any(rounds_to(one, number) for one in shown)}


def rounds_to(exact: str, number: str) -> bool:
    digits = len(number.partition(".")[2])
    return len(exact.partition(".")[2]) >= digits and f"{float(exact):.{digits}f}" == number


@pytest.mark.parametrize("name", [CURVES, EXCHANGES])
def test_every_picture_is_of_the_results_beside_it(name: str) -> None:
    pictures = sorted(path.parent / name for path in RESULTS.rglob(COMPARISON))
    assert len(pictures) > 1
    for picture in pictures:
        assert drawn_from(picture) == results_digest([picture.parent]), DRAW


def test_tuning_is_folded(tmp_path: Path) -> None:
    tuning = {arm: tuned(0.5, chosen=0) for arm in ARMS}
    outcomes = {arm: {1: outcome((1, 0.5))} for arm in ARMS}
    write_results(tmp_path / "made", results(outcomes, tuning=tuning))
    filled = refreshed("<!-- results: tuning made -->\n<!-- /results -->\n", tmp_path)
    title = "<details><summary>Candidates of each arm</summary>\n\n| arm |"
    assert title in filled
    assert filled.endswith("</details>\n<!-- /results -->\n")


def test_a_block_is_filled_from_its_folder_and_stays_as_it_is_then(tmp_path: Path) -> None:
    write_results(tmp_path / "made", MADE)
    text = "before\n<!-- results: table made -->\nearlier\n<!-- /results -->\nafter\n"
    filled = refreshed(text, tmp_path)
    assert "earlier" not in filled
    assert "| co-learning | 80.00 ± 63.53 | -5.00 ± 0.00 |" in filled
    assert "seeds 1, 2" in filled
    assert filled.startswith("before\n<!-- results: table made -->\n### title")
    assert filled.endswith("<!-- /results -->\nafter\n")
    assert refreshed(filled, tmp_path) == filled


def test_the_summary_has_a_line_for_each_comparison() -> None:
    lines = summary_table([MADE, MADE]).splitlines()
    # 0.8 and 0.9: half width 12.7062 * 0.05 = 0.63531.
    cells = "85.00 ± 63.53 | 80.00 ± 63.53 | -5.00 ± 0.00 | +15.00 ± 0.00 | +25.00 ± 0.00 | 0 | 0"
    assert lines[2:4] == [f"| title | 2 | {cells} |"] * 2


@pytest.mark.parametrize(
    ("block", "message"),
    [("picture made", "no such kind of block"), ("table elsewhere", "elsewhere")],
)
def test_a_block_that_cannot_be_filled_is_named(tmp_path: Path, block: str, message: str) -> None:
    write_results(tmp_path / "made", MADE)
    with pytest.raises(DataError, match=message):
        refreshed(f"<!-- results: {block} -->\n<!-- /results -->\n", tmp_path)
