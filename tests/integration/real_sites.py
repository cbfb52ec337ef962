"""A federation as operators run it: kits, `mdc coordinator start`, `mdc site start`."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from mdc_flower.data import load_dataset
from mdc_flower.deployment.kits.provision import provision
from mdc_flower.deployment.kits.spec import read_federation
from mdc_flower.engines.flower_processes import environment, free_port, script
from tests.faults.federation import kill
from tests.processes import kill_strays

REPOSITORY = Path(__file__).parents[2]
Process = subprocess.Popen[bytes]


def contract_of(name: str) -> dict[str, Any]:
    """Return a contract that a data set fulfils."""
    data = load_dataset(name)
    return {
        "name": data.name,
        "type": str(data.train.inputs.dtype),
        "shape": list(data.input_shape),
        "classes": list(data.class_names),
        "mean": list(data.mean),
        "std": list(data.std),
    }


class RealSites:
    """A folder of kits, and the processes that are started from them.

    Each site has the same part of the data as the simulated site of the same name, so a run here
    gives the same bits as a simulation.

    Parameters
    ----------
    folder : Path
        Folder for kits, logs and runs.
    num_sites : int
        Number of sites; they are called ``site-0`` and so on.
    coordinator_data : str
        Data set that the coordinator tests on; empty for none.
    host, port, listen : str, int, str
        Address at which sites reach the coordinator (port 0: a free port), and the address that it
        binds.
    variables : Mapping
        Extra environment variables for every process.
    data : str
        Data set of the sites.
    job : str
        The sites' job, ``module:function``, in place of the classification of a data set.
    mdc : Path or None
        Path of the `mdc` command; by default the one of this environment.
    """

    def __init__(
        self,
        folder: Path,
        num_sites: int = 3,
        coordinator_data: str = "",
        host: str = "localhost",
        port: int = 0,
        listen: str = "127.0.0.1",
        variables: Mapping[str, str] | None = None,
        data: str = "digits",
        job: str = "",
        mdc: Path | None = None,
    ) -> None:
        self.folder = folder
        self._mdc = str(mdc or script("mdc"))
        self.names = [f"site-{number}" for number in range(num_sites)]
        self.federation: dict[str, Any] = {
            "name": "digits-trial",
            "host": host,
            "port": port or free_port(),
            "listen": listen,
            **({"job": job} if job else {"contract": contract_of(data)}),
            "coordinator": {"data": coordinator_data},
            "site": [
                {
                    "name": name,
                    "data": data,
                    "data-root": f"/srv/secret-place-of-{name}",
                    "modules": ["tests.faults", "tests.tiny"],
                    "threads": 1,  # as many as a simulated site, for the same bits
                    "partition-id": number,
                    "num-partitions": num_sites,
                }
                for number, name in enumerate(self.names)
            ],
        }
        self._variables = dict(variables or {})
        self._processes: list[Process] = []
        self.provision()

    @property
    def kits(self) -> Path:
        """Return the folder that contains the kits."""
        return self.folder / "kits"

    @property
    def address(self) -> str:
        """Return the address at which sites reach the coordinator."""
        return f"{self.federation['host']}:{self.federation['port']}"

    def kit(self, name: str) -> Path:
        """Return the folder of one kit."""
        return self.kits / name

    def log(self, name: str) -> str:
        """Return the output so far of a command that `start` started."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.is_file() else ""

    def provision(self, renew: Sequence[str] = (), revoke: Sequence[str] = ()) -> list[str]:
        """Write ``federation.toml``, and provision the kits."""
        path = self.folder / "federation.toml"
        path.write_text(tomli_w.dumps(self.federation))
        return provision(read_federation(path), path, self.kits, renew, revoke)

    def start_coordinator(self, prefix: Sequence[str] = ()) -> Process:
        """Start the coordinator, and wait until sites can join."""
        before = self.log("coordinator").count("may take part")
        process = self.start(
            "coordinator", "coordinator", "start", str(self.kit("coordinator")), prefix=prefix
        )
        self.wait(
            lambda: self.log("coordinator").count("may take part") > before, 90, "coordinator"
        )
        return process

    def start_site(self, name: str, prefix: Sequence[str] = ()) -> Process:
        """Start a site without waiting for it."""
        return self.start(name, "site", "start", str(self.kit(name)), prefix=prefix)

    def start(self, name: str, *arguments: str, prefix: Sequence[str] = ()) -> Process:
        """Start an `mdc` command, with its output in NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*prefix, self._mdc, *arguments],
                cwd=REPOSITORY,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def mdc(
        self, *arguments: str, prefix: Sequence[str] = (), timeout_s: float = 600.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run an `mdc` command to its end."""
        return subprocess.run(
            [*prefix, self._mdc, *arguments],
            cwd=REPOSITORY,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def run(self, run_dir: Path, keys: Mapping[str, Any], timeout_s: float = 600.0) -> None:
        """Lead a run with these keys of the run config to its end, at sites that are started."""
        settings = [text for key, value in keys.items() for text in ("--set", f"{key}={value}")]
        kit = str(self.kit("coordinator"))
        command = ["coordinator", "run", kit, *settings, "--output", str(run_dir)]
        done = self.mdc(*command, timeout_s=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr

    def environment(self) -> dict[str, str]:
        """Return the environment variables for every process."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {**environment(home), **self._variables, "PYTHONPATH": str(REPOSITORY)}

    def wait(self, condition: Callable[[], object], patience_s: float, name: str) -> None:
        """Wait until the condition holds; on failure, show the output of the named command."""
        end = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < end, (
                f"the condition did not hold within {patience_s:g} s; output: {self.log(name)}"
            )
            time.sleep(0.2)

    def kill_coordinator(self, process: Process) -> None:
        """Kill the coordinator and all of its processes, as a power failure does."""
        kill(process)

    def close(self) -> None:
        """Stop all remaining processes."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        kill_strays(self.folder)


@contextmanager
def real_sites(folder: Path, **options: Any) -> Iterator[RealSites]:
    """Yield a federation, and stop its remaining processes after the block."""
    started = RealSites(folder, **options)
    try:
        yield started
    finally:
        started.close()
