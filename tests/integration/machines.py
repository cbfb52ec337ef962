"""The machines of a federation, each a folder here, and the commands that people type on them."""

import os
import subprocess
from pathlib import Path

from mdc_flower.engines.flower_processes import environment, script
from tests.faults.runs import wait_until
from tests.processes import kill_strays

ROOT = Path(__file__).parents[2]


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


def wait_for(text: str, path: Path) -> None:
    """Wait until a log contains a text."""
    wait_until(lambda: text in path.read_text(), 600)
