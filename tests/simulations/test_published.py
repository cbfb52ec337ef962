"""The numbers in README and docs are those of the committed results."""

from pathlib import Path

import pytest

from simulations.published import BLOCK, documents, refreshed
from simulations.results_files import write_results
from simulations.tables import SUMMARY_ARMS, summary_table
from strategies.errors import DataError
from tests.simulations.made_up import outcome, results

MADE = results(
    {key: {1: outcome((1, value)), 2: outcome((1, value + 0.1))} for key, value in zip(
        SUMMARY_ARMS, (0.8, 0.75, 0.6, 0.5), strict=True
    )}
)  # fmt: skip


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_table_of_results_in_the_documentation_is_what_the_results_say(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert refreshed(text, path.parent) == text, "python -m simulations.published writes it"


def test_the_documentation_has_such_tables() -> None:
    assert sum(len(BLOCK.findall(path.read_text(encoding="utf-8"))) for path in documents()) > 1


def test_a_block_is_filled_from_its_folder_and_stays_as_it_is_then(tmp_path: Path) -> None:
    write_results(tmp_path / "made", MADE)
    text = "before\n<!-- results: table made -->\nold\n<!-- /results -->\nafter\n"
    filled = refreshed(text, tmp_path)
    assert "old" not in filled
    assert "| co-learning | 80.00 ± 63.53 | -5.00 ± 0.00 |" in filled
    assert "seeds 1, 2" in filled
    assert filled.startswith("before\n<!-- results: table made -->\n### title")
    assert filled.endswith("<!-- /results -->\nafter\n")
    assert refreshed(filled, tmp_path) == filled


def test_the_summary_has_a_line_for_each_comparison() -> None:
    lines = summary_table([MADE, MADE]).splitlines()
    # 0.8 and 0.9: half width 12.7062 * 0.05 = 0.63531.
    cells = (
        "85.00 ± 63.53 | 80.00 ± 63.53 | 65.00 ± 63.53 | 55.00 ± 63.53 | -5.00 ± 0.00 "
        "| -20.00 ± 0.00 | 0 | 0"
    )
    assert lines[2:4] == [f"| title | 2 | {cells} |"] * 2


@pytest.mark.parametrize(
    ("block", "message"),
    [("picture made", "no such kind of block"), ("table elsewhere", "elsewhere")],
)
def test_a_block_that_cannot_be_filled_is_named(tmp_path: Path, block: str, message: str) -> None:
    write_results(tmp_path / "made", MADE)
    with pytest.raises(DataError, match=message):
        refreshed(f"<!-- results: {block} -->\n<!-- /results -->\n", tmp_path)
