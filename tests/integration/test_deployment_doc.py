"""Run every command of docs/deployment.md, in order."""

import re
import tarfile
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mdc_flower.common.launch import Launch
from mdc_flower.engines.flower_processes import free_port
from strategies.storage.run_directory import read_events, read_history
from tests.documentation import code_blocks
from tests.faults.runs import wait_until
from tests.integration.conftest import summary_of
from tests.integration.machines import Machines, wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
blocks = partial(code_blocks, PAGE)
SITES = ("berlin", "lisbon", "oslo")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Yield the folders; stop all processes in them afterwards."""
    started = Machines(tmp_path)
    yield started
    started.close()


def test_the_launch_tables_of_the_page_are_valid() -> None:
    tables = [tomllib.loads(block) for block in blocks("toml") if "[launch]" in block]
    assert len(tables) == 2
    for table in tables:
        assert not Launch.read(table["launch"], "launch").is_single


@pytest.mark.integration
@pytest.mark.slow
def test_every_command_of_the_page(machines: Machines) -> None:
    provision, coordinate, join, train, renew, revoke, backup = blocks("sh")
    center = machines.center
    (text,) = (block for block in blocks("toml") if "[contract]" in block)
    text = text.replace("coordinator.example.org", "localhost").replace("8443", str(free_port()))
    federation = center / "federation.toml"
    federation.write_text(text)

    machines.run(provision, center)
    coordinator = machines.start(coordinate, center)
    wait_for("3 sites may take part: berlin, lisbon, oslo", center / "log.txt")
    *unpack_and_check, start = join.splitlines()
    for name in SITES:
        folder = machines.site(name)
        for sent in (f"{name}.zip", f"{name}.zip.sha256"):
            (folder / sent).write_bytes((center / "kits" / sent).read_bytes())
        for command in unpack_and_check:
            machines.run(command.replace("berlin", name), folder)
        machines.start(start.replace("berlin", name), folder)
    status, first, resumed, evaluate = train.splitlines()
    assert all(name in machines.run(status, center) for name in SITES)
    machines.run(first, center)
    machines.run(resumed, center)
    assert '"accuracy"' in machines.run(evaluate, center)
    _check_run(center / "runs" / "first")

    machines.run(renew, center)
    wait_for("berlin: its key is no longer accepted", center / "log.txt")
    wait_for("no longer accepts this site's key", machines.site("berlin") / "log.txt")
    tables = text.split("[[site]]")
    federation.write_text("[[site]]".join(t for t in tables if 'name = "lisbon"' not in t))
    machines.run(revoke, center)
    wait_for("lisbon: its key is no longer accepted", center / "log.txt")
    wait_for("no longer accepts this site's key", machines.site("lisbon") / "log.txt")
    coordinator.terminate()
    coordinator.wait(60)
    machines.run(backup, center)
    _check_backup(machines, coordinate, status)


def _check_backup(machines: Machines, coordinate: str, status: str) -> None:
    """Restore the backup elsewhere: its coordinator knows the sites, and a site reconnects."""
    restored = machines.folder / "restored"
    restored.mkdir()
    with tarfile.open(machines.center / "backup.tar.gz") as archive:
        archive.extractall(restored, filter="data")
    machines.start(coordinate, restored)
    wait_for("2 sites may take part: berlin, oslo", restored / "log.txt")
    wait_until(lambda: re.search(r"oslo\W+online", machines.run(status, restored)) is not None, 300)
    assert len(read_history(restored / "runs" / "first")) == 3


def _check_run(run_dir: Path) -> None:
    """Check that the sites evaluated the models, because the coordinator has no data."""
    history = read_history(run_dir)
    assert [sorted(line["participants"]) for line in history] == [list(SITES)] * 3
    assert all(line["evaluation"] == {} for line in history)
    # The evaluation that came with the last round's updates is of the model before that round.
    assert history[2]["start_evaluation"]["validation-accuracy"] > 0.7
    assert history[2]["site_evaluation"]["validation-accuracy"] > 0.7
    assert (run_dir / "best-model.safetensors").is_file()
    # One exchange per round: nine replies, none of them to a separate evaluation request.
    assert len(read_events(run_dir, "site-answered")) == 9
    assert summary_of(run_dir)["status"] == "finished"
