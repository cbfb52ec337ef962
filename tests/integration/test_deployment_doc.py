"""Run every command of docs/deployment.md, in order."""

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdc_flower.engines.flower_processes import environment, free_port, script
from strategies.storage.run_directory import read_events, read_history
from tests.faults.runs import wait_until
from tests.integration.conftest import summary_of
from tests.processes import kill_strays

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
SITES = ("berlin", "lisbon", "oslo")


def blocks(language: str) -> list[str]:
    """Return the page's fenced code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Machines:
    """A folder for organizer and coordinator, one per site, and the processes in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.center = folder / "center"
        self.center.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        (folder / "home").mkdir()

    @property
    def env(self) -> dict[str, str]:
        """Return the environment variables of a user who has activated .venv."""
        env = {**environment(self.folder / "home"), "PYTHONPATH": str(ROOT)}
        return {**env, "PATH": os.pathsep.join([str(Path(script("mdc")).parent), env["PATH"]])}

    def site(self, name: str) -> Path:
        """Return the folder in which a site unpacks its kit."""
        folder = self.folder / f"at-{name}"
        folder.mkdir(exist_ok=True)
        return folder

    def run(self, command: str, folder: Path) -> str:
        """Run a command to its end; return its output."""
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=folder, env=self.env, capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: str, folder: Path) -> subprocess.Popen[bytes]:
        """Start a command in the background; its output goes to log.txt in its folder."""
        with (folder / "log.txt").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    ["/bin/sh", "-c", f"exec {command}"],
                    cwd=folder,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return self._processes[-1]

    def close(self) -> None:
        """Stop all processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)
        kill_strays(self.folder)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Yield the folders; stop all processes in them afterwards."""
    started = Machines(tmp_path)
    yield started
    started.close()


def wait_for(text: str, path: Path) -> None:
    """Wait until a log contains a text."""
    wait_until(lambda: text in path.read_text(), 600)


@pytest.mark.integration
@pytest.mark.slow
def test_every_command_of_the_page(machines: Machines) -> None:
    provision, coordinate, join, train, renew, revoke, backup = blocks("sh")
    center = machines.center
    (text,) = blocks("toml")
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
