"""The code of docs/own-loop.md is that of the examples, and its commands run."""

import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

from mdc_flower.deployment.kits.spec import SiteSpec
from mdc_flower.site.own_loop.request import write_request
from mdc_flower.site.own_loop.round import Round
from tests.documentation import code_blocks
from tests.mdc_flower.examples import plan
from tests.own_loop import EXAMPLES

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "own-loop.md").read_text()
blocks = partial(code_blocks, PAGE)


def test_the_code_is_that_of_the_examples() -> None:
    main, callbacks = blocks("python")
    (job,) = blocks("sh")
    assert main in (EXAMPLES / "site_train.py").read_text()
    assert job == (EXAMPLES / "job.sh").read_text()
    compile(callbacks, "own-loop.md", "exec")


def test_the_kit_of_the_page_is_read() -> None:
    (site,) = tomllib.loads(blocks("toml")[0])["site"]
    assert SiteSpec.read(site, "the page").command.startswith("python ")


def test_the_tables_list_the_fields_of_a_plan(tmp_path: Path) -> None:
    write_request(tmp_path, "train", "north", {}, plan(), 60.0)
    about = PAGE.partition("`plan.json`:")[2].partition("`result.json`")[0]
    named = set(re.findall(r"`(\w+)`", about))
    written = set(re.findall(r'"(\w+)":', (tmp_path / "plan.json").read_text()))
    assert written <= named


def test_a_job_in_any_language_gets_the_rates_of_the_steps(tmp_path: Path) -> None:
    write_request(tmp_path, "train", "north", {}, plan(lr_min=0.1, shape="exponential"), 60.0)
    (command,) = re.findall(r"`(python -m mdc_flower.site.own_loop.rates) FOLDER STEPS`", PAGE)
    done = subprocess.run(
        [sys.executable, *command.split()[1:], str(tmp_path), "5"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    rates = [float(line) for line in done.stdout.splitlines()]
    assert rates == [Round(tmp_path).lr_at(step, 5) for step in range(5)]
