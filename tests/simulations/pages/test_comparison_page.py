"""The page of a comparison says what its two files say, and needs nothing else."""

from pathlib import Path

import pytest

from mdc_flower.reports.page import render
from simulations.pages.comparison_page import comparison_page
from simulations.pages.drawing import CSV_TABLE, CURVES, EXCHANGES, TABLE, TUNING_TABLE
from simulations.pages.report import PAGE, write_report
from simulations.results.result_files import COMPARISON, RESULTS, read_results, write_results
from strategies.common.errors import ConfigError, DataError
from tests.simulations.made_up import MEGABYTE, outcome, results, tuned

EXCHANGED = {"exchanges": 2, "round": 2, "sent_bytes": MEGABYTE, "received_bytes": 3 * MEGABYTE}
OUTCOMES = {
    "base": {seed: outcome((2, 0.25), (4, value)) for seed, value in ((1, 0.9), (2, 0.92))},
    "other": {
        seed: outcome((2, 0.25), (4, value), **EXCHANGED) for seed, value in ((1, 0.8), (2, 0.82))
    },
}
TUNING = {"base": tuned(0.5, 0.75, chosen=1), "other": tuned(0.8, 0.7, chosen=0)}
NAMES = ["the <b>base</b>", "other"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the two files of a comparison, and no other."""
    write_results(tmp_path, results(OUTCOMES, NAMES, TUNING))
    assert sorted(path.name for path in tmp_path.iterdir()) == [COMPARISON, RESULTS]
    return tmp_path


def assert_drawn(folder: Path) -> None:
    """Hold that a comparison's tables and pictures are in a folder."""
    assert (folder / TABLE).read_text().startswith("### ")
    for name in (TUNING_TABLE, CSV_TABLE, CURVES, EXCHANGES):
        assert (folder / name).stat().st_size > 0


def test_the_page_is_written_beside_the_two_files_and_is_the_same_each_time(folder: Path) -> None:
    path = write_report(folder)
    assert path == folder / PAGE
    first = path.read_bytes()
    assert write_report(folder).read_bytes() == first
    assert_drawn(folder)
    (folder / "elsewhere").mkdir()
    other = write_report(folder, folder / "elsewhere" / "other.html")
    assert_drawn(folder / "elsewhere")
    assert other.read_bytes() == first


def test_the_head_says_where_the_results_come_from(folder: Path) -> None:
    page = comparison_page(read_results(folder))
    assert page.title == "title"
    assert page.subtitle == "Comparison of 2 arms at equal budgets, by accuracy on the test split"
    assert dict(page.highlights) == {
        "arms": "2",
        "seeds": "2",
        "sites": "2",
        "all runs, on one core": "12.5 s",
    }
    assert dict(page.facts) == {
        "command": "mdc compare file.toml",
        "date": "2026-01-02",
        "hardware": "2 cores",
        "versions": "python 3.11",
        "seeds": "1, 2",
    }


def test_the_table_is_that_of_the_comparison(folder: Path) -> None:
    (reached, _, _) = comparison_page(read_results(folder)).sections
    (table,) = reached.tables
    assert table.numeric
    # Deviation 0.01 * sqrt(2), t(0.975, 1) = 12.7062; half width 12.7062 * 0.01 = 0.127062.
    # Both seeds differ by 0.1: no width.
    assert list(map(list, table.rows)) == [
        ["the <b>base</b>", "91.00 ± 12.71", "", "0", "0.0", "0", "1.5"],
        ["other", "81.00 ± 12.71", "-10.00 ± 0.00", "2", "4.0", "0.40", "1.5"],
    ]
    assert table.strong == {0}
    assert "Mean over 2 seeds" in table.note


def test_the_pictures_are_told_in_words(folder: Path) -> None:
    (reached, _, _) = comparison_page(read_results(folder)).sections
    exchanges, curves = reached.pictures
    assert exchanges.label == "Exchanges: the <b>base</b> 0, 0 B; other 2, 4.0 MB."
    assert curves.label == "Final accuracy: the <b>base</b> 91.00 ± 12.71 %; other 81.00 ± 12.71 %."


def test_every_candidate_is_shown_and_the_chosen_one_is_named(folder: Path) -> None:
    (_, tuning, _) = comparison_page(read_results(folder)).sections
    (table,) = tuning.tables
    assert table.rows == [
        ["the <b>base</b>", "lr-max 0.1", "50.00", ""],
        ["the <b>base</b>", "lr-max 0.2", "75.00", "chosen"],
        ["other", "lr-max 0.1", "80.00", "chosen"],
        ["other", "lr-max 0.2", "70.00", ""],
    ]
    assert table.strong == {1, 2}
    assert "over the seeds 101, 102;" in tuning.text


def test_what_was_not_tuned_has_no_such_section(tmp_path: Path) -> None:
    write_results(tmp_path, results(OUTCOMES))
    (_, tuning, _) = comparison_page(read_results(tmp_path)).sections
    assert tuning.empty
    assert "tuned" not in write_report(tmp_path).read_text()


def test_arms_are_told_apart_by_their_own_keys() -> None:
    one = results(OUTCOMES)
    configs: list[dict[str, str | float]] = [
        {"lr-max": 0.1, "model": "mlp", "epochs": "ile"},
        {"lr-max": 0.05, "model": "mlp", "epochs": "ile"},
    ]
    arms = [
        arm.model_copy(update={"config": config})
        for arm, config in zip(one.facts.arms, configs, strict=True)
    ]
    facts = one.facts.model_copy(update={"arms": arms})
    (_, _, section) = comparison_page(one.model_copy(update={"facts": facts})).sections
    (table,) = section.tables
    # 0.05 and ile are the defaults.
    assert table.rows == [
        ["base", "federated", "lr-max 0.1"],
        ["other", "federated", "defaults only"],
    ]
    assert section.listing is not None
    assert list(section.listing.entries) == [("model", "mlp")]


def test_a_name_is_no_markup(folder: Path) -> None:
    text = write_report(folder).read_text()
    assert "<b>" not in text
    assert "the &lt;b&gt;base&lt;/b&gt;" in text
    assert text.count("<img ") == 2


def test_thin_lines_are_explained_where_there_are_any() -> None:
    all_named = render(comparison_page(results(OUTCOMES)))
    one_named = render(comparison_page(results(OUTCOMES, highlight=["base"])))
    assert "Thin lines" not in all_named
    assert "Thin lines have no band." in one_named


def test_a_damaged_comparison_and_a_folder_with_nothing_are_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / RESULTS).unlink()
    with pytest.raises(DataError, match=r"results\.jsonl: the file cannot be read"):
        write_report(folder)
    with pytest.raises(ConfigError, match="the folder holds no run and no comparison") as caught:
        write_report(tmp_path_factory.mktemp("nothing"))
    assert caught.value.exit_code == 2
