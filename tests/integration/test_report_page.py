"""The pages of a run and of a comparison in a real browser: complete, drawn, without network."""

import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from mdc_flower.cli.main import app
from mdc_flower.engines.in_process import run_in_process
from simulations.pages.report import write_report
from simulations.results.result_files import write_results
from tests.integration.conftest import small_config
from tests.simulations.made_up import MEGABYTE, outcome, results

BROWSER = shutil.which("chromium")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip
WINDOW = (1280, 3000)

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="chromium is not installed (apt-get install chromium)"
)

MEASURE = """
<script>
for (const image of document.images) {
  const box = image.getBoundingClientRect();
  image.setAttribute("data-drawn", `${Math.round(box.width)}x${Math.round(box.height)}`);
}
document.body.setAttribute("data-asked", performance.getEntriesByType("resource").length);
document.body.setAttribute("data-wide", document.documentElement.scrollWidth);
</script>
"""
"""Makes the browser report how it drew the page. The page itself has no script."""


class Elements(HTMLParser):
    """The attributes of every element of a page, and the texts outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def browse(folder: Path, *arguments: str) -> str:
    """Run the browser with a fresh profile; return its output."""
    profile = folder / "profile"
    done = subprocess.run(
        [str(BROWSER), *OPTIONS, f"--user-data-dir={profile}",
         f"--window-size={WINDOW[0]},{WINDOW[1]}", *arguments],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    shutil.rmtree(profile)
    return done.stdout


def check_no_fetches(html: str) -> None:
    """Check that a page fetches nothing."""
    page = Elements(html)
    assert not {tag for tag, _ in page.found} & {"script", "link", "iframe", "object"}
    for tag, attributes in page.found:
        for key, value in attributes.items():
            if key in ("src", "href"):
                assert (value or "").startswith("data:"), (tag, key, value)
    assert not re.findall(r"@import|url\(", html)


def mdc(*arguments: str | Path) -> Result:
    """Run the command in this process; restore signal handlers and the path afterwards."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    handlers, path = [signal.getsignal(kind) for kind in signals], list(sys.path)
    try:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        sys.path[:] = path
        for kind, handler in zip(signals, handlers, strict=True):
            signal.signal(kind, handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run three sites for two rounds, and write the page; return the run directory."""
    folder = tmp_path_factory.mktemp("report") / "run"
    run_in_process(small_config(folder, max_train_examples=200, site_evaluation=True), 3)
    result = mdc("report", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"report written to {folder / 'report.html'}\n"
    return folder


def test_the_page_names_every_site_and_fetches_nothing(run: Path) -> None:
    html = (run / "report.html").read_text()
    check_no_fetches(html)
    text = Elements(html).text
    assert all(f"site-{number}" in text for number in range(3))
    for title in ("Results", "Participation", "Round by round", "Config"):
        assert title in text


def test_the_page_of_a_run_does_not_depend_on_where_it_is_written(
    run: Path, tmp_path: Path
) -> None:
    result = mdc("report", run, "--output", tmp_path / "other.html")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "other.html").read_bytes() == (run / "report.html").read_bytes()


def drawn_by_browser(folder: Path, page: Path) -> dict[str, dict[str, str | None]]:
    """Return the pictures of a page, with their sizes in the browser."""
    measured = folder / "measured.html"
    measured.write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    elements = Elements(browse(folder, "--dump-dom", measured.as_uri()))
    (body,) = elements.all("body")
    assert body["data-asked"] == "0"
    # Nothing is cut off on the right.
    assert int(str(body["data-wide"])) <= WINDOW[0]
    return {str(one["id"]): one for one in elements.all("img")}


def has_size(picture: dict[str, str | None]) -> bool:
    width, height = map(int, str(picture["data-drawn"]).split("x"))
    return width >= 400 and height >= 80


@pytest.mark.integration
@needs_browser
def test_a_browser_draws_every_picture_and_fetches_nothing(run: Path, tmp_path: Path) -> None:
    pictures = drawn_by_browser(tmp_path, run / "report.html")
    assert set(pictures) == {
        "accuracy", "loss", "learning-rate", "local-work", "relative-change", "bytes",
        "participation",
    }  # fmt: skip
    assert all(map(has_size, pictures.values()))
    assert all(one["alt"] for one in pictures.values())


@pytest.mark.integration
@needs_browser
def test_a_browser_shows_content_from_top_to_bottom(run: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    browse(tmp_path, f"--screenshot={shot}", (run / "report.html").as_uri())
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape == (WINDOW[1], WINDOW[0])
    # Each fifth of the page has content; most of the page is white.
    for part in np.array_split(pixels, 5):
        assert (part < 128).mean() > 0.001
    assert np.median(pixels) > 240


@pytest.mark.integration
@needs_browser
def test_a_browser_draws_the_page_of_a_comparison(tmp_path: Path) -> None:
    curve = outcome((2, 0.5), (4, 0.9), sent_bytes=MEGABYTE, received_bytes=MEGABYTE)
    write_results(tmp_path, results({"base": {1: outcome((4, 0.8))}, "co-learning": {1: curve}}))
    page = write_report(tmp_path)
    check_no_fetches(page.read_text())
    assert "co-learning" in Elements(page.read_text()).text
    pictures = drawn_by_browser(tmp_path, page)
    assert set(pictures) == {"exchanges", "curves"}
    assert all(map(has_size, pictures.values()))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    result = mdc("report", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: DIR: the folder holds no run and no comparison (got '")
    assert list(tmp_path.iterdir()) == []
    assert mdc("report", tmp_path / "missing").exit_code == 2
