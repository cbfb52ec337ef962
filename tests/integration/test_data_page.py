"""The page about a folder with everything wrong, in a real browser."""

from pathlib import Path

import pytest

from mdc_flower.data.survey import survey
from mdc_flower.reports.data_page import data_page
from tests.integration.test_report_page import (
    MEASURE,
    WINDOW,
    Elements,
    browse,
    check_no_fetches,
    needs_browser,
)
from tests.mdc_flower.data.survey.wrong_folder import FOUND, write_wrong_folder


@pytest.mark.integration
@needs_browser
def test_a_browser_shows_what_is_wrong_and_fetches_nothing(tmp_path: Path) -> None:
    html = data_page("scans", survey(write_wrong_folder(tmp_path / "data")))
    check_no_fetches(html)
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", f"{MEASURE}</body>"))
    shown = Elements(browse(tmp_path, "--dump-dom", page.as_uri()))
    assert [one for one in FOUND if one not in shown.text and one != "linked"] == []
    (body,) = shown.all("body")
    assert body["data-asked"] == "0"
    assert int(str(body["data-wide"])) <= WINDOW[0]  # nothing is cut off on the right
    pictures = shown.all("img")
    assert len(pictures) == 7  # three each of cat and dog, one of "cat "
    assert all(one["data-drawn"] == "130x130" or one["alt"] for one in pictures)
