"""The coordinator's side: a SuperLink for days, its sites by name, and runs through it."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mdc_flower.admission import REGISTER
from mdc_flower.config import RunConfig
from mdc_flower.config_model import Scalar
from mdc_flower.engines.flower_processes import (
    Tls,
    connect,
    flwr,
    is_healthy,
    local_address,
    stop_strays,
    superlink,
)
from mdc_flower.engines.submission import run_through
from mdc_flower.federation.kits import CoordinatorKit
from mdc_flower.federation.registry import Node, nodes, register_path, synchronize
from mdc_flower.federation.superlink import FEDERATION
from strategies.errors import RunError
from strategies.journal.files import write_atomically
from strategies.journal.run_directory import HISTORY, read_events, read_history

LOOK_S = 2.0
"""Seconds between two looks at the kit's sites, and at whether the SuperLink runs."""

DATABASE, LOG, LAST_RUN = "superlink.db", "superlink.log", "last-run"
MAX_LOG_BYTES = 10_000_000

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SiteStatus:
    """One site as the coordinator's people see it.

    Attributes
    ----------
    node : Node
        Whether it is online, and since when.
    version : str
        Version of mdc-flower it had in the last run; empty if it took no part.
    last_round : int
        The last run's newest round that its update counted in; 0 for none.
    """

    node: Node
    version: str
    last_round: int


def start(kit: CoordinatorKit, install_dependencies: bool, tell: Tell) -> None:
    """Run the federation's SuperLink until it is stopped; sites may be added meanwhile.

    Parameters
    ----------
    kit
        The coordinator's kit. Database, log and register are in its ``state``.
    install_dependencies
        Whether Flower may install what an app says it depends on.
    tell
        Told what a person should see.

    Raises
    ------
    RunError
        If it runs already, does not start, or dies.
    """
    home, log_path = _prepare(kit)
    with _only_one(kit, "coordinator", "the coordinator runs already"):
        stop_strays(home)  # of a coordinator that was killed
        options = ["--enable-supernode-auth", "--database", str(kit.state / DATABASE)]
        variables = {FEDERATION: kit.federation, REGISTER: str(register_path(kit))}
        if install_dependencies:
            variables["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "0"
        with superlink(
            home,
            log_path,
            options,
            kit.port,
            command=[sys.executable, "-m", "mdc_flower.federation.superlink"],
            listen=kit.listen,
            tls=Tls(kit.ca, kit.certificate, kit.key),
            variables=variables,
        ) as link:
            tell(f"coordinator of {kit.federation!r} for {kit.address}; log: {log_path}")
            sites: Mapping[str, str] | None = None
            while link.process.poll() is None:
                if kit.sites != sites:
                    sites = kit.sites
                    for line in synchronize(kit, home):
                        tell(line)
                    tell(f"{len(sites)} sites may take part: {', '.join(sites)}")
                time.sleep(LOOK_S)
            raise RunError(
                f"the SuperLink exited with {link.process.returncode}",
                hint=f"The log is {log_path}",
            )


def status(kit: CoordinatorKit) -> list[SiteStatus]:
    """Return what is known of each site, in site order.

    Raises
    ------
    RunError
        If the coordinator does not run.
    """
    with _client(kit) as home:
        told = nodes(kit, home)
    run_dir = last_run(kit)
    versions: dict[str, str] = {}
    rounds: list[dict[str, Any]] = []
    if run_dir is not None:
        for event in read_events(run_dir, "run-started"):
            versions |= event.get("versions", {})
        rounds = read_history(run_dir) if (run_dir / HISTORY).is_file() else []
    return [
        SiteStatus(node, versions.get(node.name, ""), _last_round(rounds, node.name))
        for node in told
    ]


def last_run(kit: CoordinatorKit) -> Path | None:
    """Return the directory of the newest run; None before the first."""
    path = kit.state / LAST_RUN
    return Path(path.read_text().strip()) if path.is_file() else None


def run_defaults(kit: CoordinatorKit) -> dict[str, Scalar]:
    """Return the keys of the run config that a kit decides, where a run says nothing else.

    A coordinator without data of its own goes by the sites' validation data.
    """
    return {
        "num-sites": len(kit.sites),
        "dataset": kit.data or kit.contract.to_spec(),
        "data-root": kit.data_root,
        "site-evaluation": not kit.data,
    }


@contextmanager
def one_run(kit: CoordinatorKit, run_dir: Path) -> Iterator[None]:
    """Let no other run through the same sites meanwhile, and take note of this one.

    Raises
    ------
    RunError
        If one goes on.
    """
    _prepare(kit)
    with _only_one(kit, "run", "another run goes on through this coordinator"):
        write_atomically(kit.state / LAST_RUN, f"{run_dir}\n".encode())
        yield


def run_on_sites(kit: CoordinatorKit, config: RunConfig, tell: Tell) -> None:
    """Run a config on the federation's sites; return when it has finished.

    A coordinator that does not run, or is just started again, is waited for.

    Raises
    ------
    MdcError
        See `run_through`.
    """
    run_dir = Path(config.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    _wait_for_coordinator(kit, config.wait_for_sites_s, tell)
    with _client(kit) as home:
        try:
            run_through(config, home, run_dir / "engine.log", lambda: _answers(kit))
        finally:
            _stop_runs(home)


def _prepare(kit: CoordinatorKit) -> tuple[Path, Path]:
    """Make the folder for what the running software keeps; return FLWR_HOME and log."""
    home, log_path = kit.state / "flwr", kit.state / LOG
    kit.state.mkdir(mode=0o700, exist_ok=True)
    home.mkdir(exist_ok=True)
    if log_path.is_file() and log_path.stat().st_size > MAX_LOG_BYTES:
        log_path.rename(log_path.with_suffix(".log.1"))
    return home, log_path


@contextmanager
def _only_one(kit: CoordinatorKit, name: str, refusal: str) -> Iterator[None]:
    path = kit.state / f".{name}.lock"
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise RunError(refusal, where=str(path)) from None


@contextmanager
def _client(kit: CoordinatorKit) -> Iterator[Path]:
    """Yield a FLWR_HOME of one's own that leads to the coordinator's SuperLink."""
    if not _answers(kit):
        raise RunError(
            "the coordinator does not run",
            where=_local(kit),
            hint=f"Start it: mdc coordinator start {kit.folder}",
        )
    home = Path(tempfile.mkdtemp(prefix="mdc-flower-"))
    try:
        connect(home, _local(kit), kit.ca)
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _local(kit: CoordinatorKit) -> str:
    return local_address(kit.listen, kit.port)


def _answers(kit: CoordinatorKit) -> bool:
    """Return whether the SuperLink answers; one look may fail when it is busy."""
    return any(is_healthy(_local(kit), kit.ca) for _ in range(3))


def _wait_for_coordinator(kit: CoordinatorKit, wait_s: float, tell: Tell) -> None:
    deadline = time.monotonic() + wait_s
    if not _answers(kit):
        tell(f"waiting up to {wait_s:g} s for the coordinator at {_local(kit)}")
        while not _answers(kit):
            if time.monotonic() >= deadline:
                raise RunError(
                    f"the coordinator did not run within {wait_s:g} s",
                    where=_local(kit),
                    hint=f"Start it: mdc coordinator start {kit.folder}",
                )
            time.sleep(LOOK_S)


def _stop_runs(home: Path) -> None:
    """Stop what still runs, when the one who submitted it goes: nobody would judge its end."""
    with suppress(RunError):  # the SuperLink may be what has died
        for run in _running(flwr(home, "list")["runs"]):
            flwr(home, "stop", run)


def _running(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(run["run-id"]) for run in runs if not str(run["status"]).startswith("finished")]


def _last_round(rounds: Sequence[Mapping[str, Any]], site: str) -> int:
    return max((line["round"] for line in rounds if site in line["participants"]), default=0)
