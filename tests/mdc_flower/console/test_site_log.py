"""The site's own event log: whole lines, and never a reason for a round to fail."""

import json
import logging
import time
from pathlib import Path

import pytest

from mdc_flower.console.site_log import SITE_LOG, site_event


@pytest.fixture
def site_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site log.jsonl"
    monkeypatch.setenv(SITE_LOG, str(path))
    return path


def test_each_event_is_a_line_with_its_time(site_log: Path) -> None:
    before = time.time()
    site_event("hello", site="north")
    site_event("failed", error="two\nlines, Größe \udcff")
    first, second = (json.loads(line) for line in site_log.read_text().splitlines())
    assert (first["event"], first["site"]) == ("hello", "north")
    assert before - 0.001 <= first["time"] <= time.time() + 0.001
    assert second["error"] == "two\nlines, Größe \udcff"


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SITE_LOG, raising=False)
    if value is not None:
        monkeypatch.setenv(SITE_LOG, value)
    site_event("hello", site="north")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_is_told_of_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SITE_LOG, str(tmp_path / "absent" / "log.jsonl"))
    with caplog.at_level(logging.WARNING, logger="flwr"):
        site_event("hello", site="north")
    assert "the site's event log cannot be written" in caplog.text
