"""A real SuperLink and real SuperNodes that tests kill, restart and disconnect."""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from mdc_flower.config import RunConfig
from mdc_flower.engines.app_bundle import stage_app
from mdc_flower.engines.flower_processes import environment, free_port, script
from strategies.storage.run_directory import EVENTS, read_events
from tests.faults import injector
from tests.faults.runs import NUM_SITES, wait_until
from tests.processes import kill_strays

CONNECTION = "test"
LONGEST_PAUSE_S = 15.0
"""Longest time between two requests for a run's status, in seconds."""
REPOSITORY = Path(__file__).parents[2]
Process = subprocess.Popen[bytes]


class Federation:
    """One SuperLink with its database, and SuperNodes with the names of simulated sites.

    Each SuperNode has the same part of the data as the simulated site of the same name, so a run
    here gives the same bits as a simulation.

    Parameters
    ----------
    folder : Path
        Folder for logs, the database and each process's FLWR_HOME.
    faults : sequence of Fault
        Faults to inject, in whichever process reaches them.
    host : str
        Address that the SuperLink listens on.
    """

    def __init__(
        self, folder: Path, faults: Sequence[injector.Fault] = (), host: str = "127.0.0.1"
    ) -> None:
        self.log = folder / "log.txt"
        self.host = host
        self.port = free_port()
        self._folder = folder
        self._variables = injector.plan(folder / "faults", faults) if faults else {}
        self._processes: list[Process] = []
        address = {"address": f"{host}:{self.port}", "insecure": True}
        config = {"superlink": {"default": CONNECTION, CONNECTION: address}}
        self._home("superlink").joinpath("config.toml").write_text(tomli_w.dumps(config))

    def start_superlink(self) -> Process:
        """Start the SuperLink on the database of an earlier one, if any; wait until it is up."""
        process = self._start(
            "superlink",
            "flower-superlink", "--insecure", "--host", self.host, "--port", str(self.port),
            "--disable-runtime-dependency-installation",
            "--database", str(self._folder / "superlink.db"),
        )  # fmt: skip
        wait_until(self._is_healthy)
        return process

    def start_site(self, number: int, prefix: Sequence[str] = ()) -> Process:
        """Start a site's SuperNode, behind a prefix such as ``ip netns exec`` if given."""
        # As many threads as a simulated site, for the same bits.
        node = f'site="site-{number}" threads=1 partition-id={number} num-partitions={NUM_SITES}'
        return self._start(
            f"site-{number}",
            "flower-supernode", "--insecure", "--superlink", f"{self.host}:{self.port}",
            "--port", str(free_port()), "--node-config", node,
            prefix=prefix,
        )  # fmt: skip

    def start_all(self) -> tuple[Process, list[Process]]:
        """Start the SuperLink and all sites."""
        return self.start_superlink(), [self.start_site(number) for number in range(NUM_SITES)]

    def submit(self, config: RunConfig) -> None:
        """Submit a run without waiting for its end."""
        app = self._folder / "app" / "mdc-flower"
        if not app.exists():
            stage_app(app)
        self._run_dir = Path(config.output_dir)
        self._ended_before = _times_ended(self._run_dir)
        keys = self._folder / "run-config.toml"
        keys.write_text(tomli_w.dumps(config.to_flower()))
        self._flwr("run", str(app), CONNECTION, "--run-config", str(keys))

    def status(self) -> str:
        """Return the status of the newest run."""
        told = json.loads(self._flwr("list", CONNECTION, "--format", "json"))
        return str(told["runs"][0]["status"])

    def wait_for_end(self, patience_s: float = 600.0) -> str:
        """Wait until the newest run has ended; return its status."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            if (status := self.status()).startswith("finished"):
                return status
            # Each status request takes seconds of CPU time. The run's own events tell when the run
            # has ended, unless it was killed.
            asked = time.monotonic()
            while time.monotonic() < asked + (1.0 if self._has_ended() else LONGEST_PAUSE_S):
                time.sleep(0.2)
        raise AssertionError(f"the run has not ended after {patience_s:g} s; see {self.log}")

    def _has_ended(self) -> bool:
        return _times_ended(self._run_dir) > self._ended_before

    def close(self) -> None:
        """Kill all remaining processes."""
        for process in self._processes:
            kill(process)
        kill_strays(self._folder)

    def _start(self, name: str, command: str, *options: str, prefix: Sequence[str] = ()) -> Process:
        home = self._home(name)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*prefix, script(command), *options],
                cwd=home,
                env=self._environment(home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _flwr(self, *arguments: str) -> str:
        home = self._home("superlink")
        done = subprocess.run(
            [script("flwr"), *arguments],
            cwd=home,
            env=self._environment(home),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _environment(self, home: Path) -> dict[str, str]:
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        return {**environment(home), **self._variables, "PYTHONPATH": path.rstrip(os.pathsep)}

    def _home(self, name: str) -> Path:
        home = self._folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _is_healthy(self) -> bool:
        # Not with urlopen: tests that forbid downloads replace it.
        try:
            with urllib.request.build_opener().open(
                f"http://{self.host}:{self.port}/health", timeout=1
            ):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _times_ended(run_dir: Path) -> int:
    return len(read_events(run_dir, "run-ended")) if (run_dir / EVENTS).is_file() else 0


@contextmanager
def federation(folder: Path, **options: Any) -> Iterator[Federation]:
    """Yield a federation, and kill its remaining processes after the block."""
    started = Federation(folder, **options)
    try:
        yield started
    finally:
        started.close()


def kill(process: Process) -> None:
    """Kill a process and all of its children with SIGKILL."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for pid in [process.pid, *(member.pid for member in family)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
