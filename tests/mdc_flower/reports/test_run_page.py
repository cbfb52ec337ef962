"""The page of a run: complete for any run directory, and the same for the same one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from mdc_flower.reports.page import render
from mdc_flower.reports.run_files import is_run, read_run
from mdc_flower.reports.run_page import run_page
from strategies.common.errors import ConfigError, RunError
from strategies.storage.run_directory import CONFIG, EVENTS, HISTORY, SUMMARY
from tests.mdc_flower.reports.lines import by_sites, line

FINISHED = {"status": "finished", "exit-status": 0, "seed": 7, "sites": ["site-0", "site-1"]}


def run_dir(
    folder: Path,
    history: Sequence[dict[str, Any]] | None = (),
    summary: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    events: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write the files of a run directory that are given."""
    if history is not None:
        (folder / HISTORY).write_text("".join(json.dumps(one) + "\n" for one in history))
    if summary is not None:
        (folder / SUMMARY).write_text(json.dumps(summary))
    if config is not None:
        (folder / CONFIG).write_text(tomli_w.dumps(config))
    (folder / EVENTS).write_text("".join(json.dumps(one) + "\n" for one in events))
    return folder


def page_of(folder: Path) -> str:
    return render(run_page(read_run(folder)))


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time": 0.0, **fields}


@pytest.mark.parametrize(
    ("history", "pictures"),
    [
        (None, []),
        ([], []),
        (
            [line(1), line(2)],
            ["accuracy", "learning-rate", "local-work", "relative-change", "participation"],
        ),
        ([line(1, None)], ["learning-rate", "local-work"]),
        (
            [line(1, local_steps=10) | {"sent_bytes": 5}],
            [
                "accuracy",
                "learning-rate",
                "local-work",
                "relative-change",
                "bytes",
                "participation",
            ],
        ),
        (
            [line(1) | by_sites(0.1, 0.2) | {"participants": {"site-0": {"num-examples": 3}}}],
            ["accuracy", "learning-rate", "local-work", "relative-change", "participation"],
        ),
        (
            [line(1) | {"evaluation": {"test-accuracy": 0.5, "test-loss": 1.5}}],
            ["accuracy", "loss", "learning-rate", "local-work", "relative-change", "participation"],
        ),
    ],
    ids=["no-history", "empty", "two", "failed", "steps", "by-sites", "with-loss"],
)
def test_the_page_has_the_pictures_of_which_something_is_known(
    tmp_path: Path, history: list[dict[str, Any]] | None, pictures: list[str]
) -> None:
    run = read_run(run_dir(tmp_path, history))
    sections = run_page(run).sections
    assert [picture.name for section in sections for picture in section.pictures] == pictures
    text = page_of(tmp_path)
    assert text.count('src="data:image/svg+xml;base64,') == len(pictures)
    assert text.count("<img ") == text.count('alt="') == len(pictures)
    assert ("No round has finished yet." in text) == (not history)


def test_equal_runs_have_equal_pages(tmp_path: Path) -> None:
    run_dir(tmp_path, [line(1), line(2)], FINISHED, {"seed": 7})
    assert page_of(tmp_path) == page_of(tmp_path)


def test_what_a_site_calls_itself_or_says_is_shown_and_is_no_markup(tmp_path: Path) -> None:
    name = '<b>$x_1$ & "co"</b>'
    one = line(1) | {
        "participants": {name: {}},
        "dropped": {"site-1": "<script>alert(1)</script>"},
        "errors": {"site-1": "ValueError: <i>\nline 2"},
    }
    text = page_of(run_dir(tmp_path, [one]))
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "ValueError: &lt;i&gt;\nline 2" in text
    assert "$x_1$" in text


def test_the_head_says_how_a_finished_run_ended(tmp_path: Path) -> None:
    summary = FINISHED | {
        "version": "1.2.3",
        "versions": {"site-0": "1.2.3", "site-1": "1.2.4"},
        "started": 0.0,
        "seconds": 125.0,
        "averaged": {"rounds": [1, 2], "test-accuracy": 0.75},
    }
    history = [
        line(1, 0.5, local_epochs=2) | {"sent_bytes": 1000, "received_bytes": 500},
        line(2, 0.875, local_epochs=4) | {"sent_bytes": 1000},
    ]
    resumed = event("run-resumed", rounds_done=1, changed={"num-rounds": [1, 2]})
    page = run_page(read_run(run_dir(tmp_path, history, summary, {"seed": 7}, [resumed])))
    assert dict(page.highlights) == {
        "status": "finished",
        "accuracy (test)": "87.50 %",
        "rounds": "2",
        "local epochs": "6",
        "sites": "2",
        "exchanged": "2.5 kB",
        "wall time": "2 min 05 s",
    }
    assert dict(page.facts) == {
        "exit status": "0",
        "started": "1970-01-01 00:00:00 UTC",
        "resumed": "1970-01-01 00:00:00 UTC, after round 1, with num-rounds 1 → 2",
        "seed": "7",
        "sites": "site-0, site-1",
        "mean of the last models": "of rounds 1, 2; test accuracy 75.00 %",
        "mdc-flower": "1.2.3",
        "mdc-flower at the sites": "1.2.3: site-0\n1.2.4: site-1",
    }


def test_the_recall_of_each_class_stands_in_a_table_lowest_first(tmp_path: Path) -> None:
    scores = {
        "test-accuracy": 0.9,
        "test-balanced-accuracy": 0.475,
        "test-recall": [0.95, None, 0.0],
        "validation-recall": [1.0, 0.5, 0.25],
    }
    history = [line(1), line(2) | {"evaluation": scores}]
    for names, shown in ((["well", "odd", "ill"], ["ill", "well", "odd"]), ([], ["2", "0", "1"])):
        summary = FINISHED | {"class-names": names}
        (folder := tmp_path / str(len(names))).mkdir()
        page = run_page(read_run(run_dir(folder, history, summary)))
        (table,) = [t for s in page.sections for t in s.tables if t.caption.startswith("Recall")]
        assert list(table.columns) == ["class", "test recall, %", "validation recall, %"]
        assert [row[0] for row in table.rows] == shown
        assert [list(row[1:]) for row in table.rows] == [
            ["0.00", "25.00"],
            ["95.00", "100.00"],
            ["", "50.00"],
        ]
        (rounds,) = [t for s in page.sections for t in s.tables if t.caption == "Rounds"]
        column = list(rounds.columns).index("test, balanced, %")
        assert [row[column] for row in rounds.rows] == ["", "47.50"]
        assert rounds.note == "Balanced: mean recall over the classes."


def test_the_head_says_what_each_site_computed_with(tmp_path: Path) -> None:
    old, new = "EPYC, float32, 8 threads", "NVIDIA H100, bfloat16, 16 threads"
    started = event("run-started", sites=["site-0", "site-10"], machines={"site-0": old})
    history = [
        line(1) | {"machines": {"site-0": old, "site-10": old}},
        line(2) | {"machines": {"site-0": old, "site-10": new}},
    ]
    page = run_page(read_run(run_dir(tmp_path, history, FINISHED, {}, [started])))
    told = dict(page.facts)["hardware at the sites"]
    assert told == f"{old}: site-0, site-10\n{new}: site-10"


def test_what_was_done_after_the_last_round_counts(tmp_path: Path) -> None:
    summary = FINISHED | {
        "final": {"test-accuracy": 0.9},
        "recalibration": {"evaluation": {"test-accuracy": 0.9}, "site_evaluation": {}},
        "sent-bytes": 2000,
        "received-bytes": 500,
    }
    history = [line(1, 0.5) | {"sent_bytes": 1000, "received_bytes": 500}]
    page = run_page(read_run(run_dir(tmp_path, history, summary)))
    highlights, facts = dict(page.highlights), dict(page.facts)
    assert (highlights["accuracy (test)"], highlights["exchanged"]) == ("90.00 %", "2.5 kB")
    told = "recomputed after the last round; test accuracy 90.00 %"
    assert facts["BatchNorm statistics"] == told
    # The picture has it, in words as well.
    accuracy = page.sections[0].pictures[0]
    assert "test, recalibrated: 0.9 after 1 local epochs." in accuracy.label


def test_of_a_running_run_the_open_round_and_its_sites_are_known_from_the_events(
    tmp_path: Path,
) -> None:
    events = [
        event("run-started", sites=["a", "b", "c"]),
        event("round-started", plan={"round": 1}, sites=["a", "b"], kept=[]),
        event("round-started", plan={"round": 2}, sites=["a"], kept=[]),
    ]
    running = {"status": "running", "seed": 1}
    page = run_page(read_run(run_dir(tmp_path, [line(1)], running, events=events)))
    facts = dict(page.facts)
    assert facts["status"] == "running, or died without writing a final status"
    assert facts["open round"] == "2, sent to a"
    assert facts["sites"] == "a, b, c, site-0"
    # When the round is over, none is open.
    later = run_page(read_run(run_dir(tmp_path, [line(1), line(2)], running, events=events)))
    assert "open round" not in dict(later.facts)


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_refused(
    tmp_path: Path,
) -> None:
    run_dir(tmp_path, [line(1)])
    with (tmp_path / HISTORY).open("a") as file:
        file.write('{"round": 2, "pl')
    assert len(read_run(tmp_path).history) == 1
    with (tmp_path / HISTORY).open("a") as file:
        file.write("\n")
    with pytest.raises(RunError, match=r"history\.jsonl, line 2: not a round's record"):
        read_run(tmp_path)


def test_a_summary_that_is_no_json_and_a_config_that_is_no_toml_are_refused(
    tmp_path: Path,
) -> None:
    (run_dir(tmp_path, [line(1)]) / SUMMARY).write_text("{")
    with pytest.raises(RunError, match=r"summary\.json: not JSON"):
        read_run(tmp_path)
    (run_dir(tmp_path, [line(1)], FINISHED) / CONFIG).write_text("a b")
    with pytest.raises(ConfigError, match=r"config\.toml: the file is not TOML"):
        read_run(tmp_path)


def test_a_round_of_which_an_old_version_said_little_has_a_row(tmp_path: Path) -> None:
    old = {
        "round": 1,
        "plan": {"local_epochs": 3, "lr_max": 0.1, "lr_min": 0.1, "shape": "constant", "seed": 1,
                 "round": 1},
    }  # fmt: skip
    (rounds,) = (
        section
        for section in run_page(read_run(run_dir(tmp_path, [old]))).sections
        if section.title == "Round by round"
    )
    (table,) = rounds.tables
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row == {
        "round": "1",
        "local epochs": "3",
        "learning rate": "0.1",
        "sites, of 0": "0",
        "sent, B": "0.0",
        "received, B": "0.0",
        "seconds": "0.0",
    }


def test_the_config_names_what_was_set_and_lists_the_rest(tmp_path: Path) -> None:
    config = {"seed": 7, "lr-max": 0.05, "model": "mlp", "of-old": 1}
    section = run_page(read_run(run_dir(tmp_path, [], FINISHED, config))).sections[-1]
    (table,) = section.tables
    assert list(map(list, table.rows)) == [
        ["seed", "7", "1"],
        ["model", '"mlp"', '"small-cnn"'],
        ["of-old", "1", "unknown in this version"],
    ]
    assert section.listing is not None
    assert list(section.listing.entries) == [("lr-max", "0.05")]


@pytest.mark.parametrize("name", [HISTORY, SUMMARY, EVENTS])
def test_a_folder_with_one_of_a_runs_files_is_a_run(tmp_path: Path, name: str) -> None:
    assert not is_run(tmp_path)
    (tmp_path / name).touch()
    assert is_run(tmp_path)
