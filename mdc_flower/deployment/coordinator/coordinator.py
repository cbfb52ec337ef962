"""The coordinator's side: a SuperLink for days, its sites by name, and runs through it."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from mdc_flower.common.config_model import Scalar
from mdc_flower.config import RunConfig
from mdc_flower.console.tail import shorten
from mdc_flower.coordinator.admission import REGISTER
from mdc_flower.coordinator.card_claims import EXAMPLES
from mdc_flower.deployment.coordinator.endpoints import (
    answers,
    check_address,
    check_door,
    client,
    note_control,
    sites_address,
)
from mdc_flower.deployment.coordinator.site_keys import Node, nodes, register_path, synchronize
from mdc_flower.deployment.coordinator.superlink import FEDERATION, LISTEN
from mdc_flower.deployment.kits.kits import KIT, CoordinatorKit, join_address
from mdc_flower.deployment.site.state_folder import only_one, open_state
from mdc_flower.engines.flower_processes import (
    Tls,
    flwr,
    superlink,
)
from mdc_flower.engines.guardian import guarded
from mdc_flower.engines.submission import run_through, wait_for_coordinator_to_end
from strategies.common.errors import MdcError, RunError
from strategies.common.files import StorageError, write_atomically
from strategies.storage.run_directory import HISTORY, read_events, read_history

LOOK_S = 2.0
"""Seconds between two looks at the kit's sites, and at whether the SuperLink runs."""

RETRY_S = 30.0
"""Seconds after which a key that could not be registered is tried again."""

DATABASE, LOG, LAST_RUN = "superlink.db", "superlink.log", "last-run"

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
    log_path = kit.state / LOG
    home = open_state(kit)
    with only_one(kit, "coordinator", "the coordinator runs already"), guarded(home):
        check_address(kit)
        options = ["--enable-supernode-auth", "--database", str(kit.state / DATABASE)]
        variables = {
            FEDERATION: kit.federation,
            LISTEN: join_address(kit.listen, kit.port),
            REGISTER: str(register_path(kit)),
            EXAMPLES: str(kit.folder / KIT),
        }
        if install_dependencies:
            variables["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "0"
        with superlink(
            home,
            log_path,
            options,
            command=[sys.executable, "-m", "mdc_flower.deployment.coordinator.superlink"],
            tls=Tls(kit.ca, kit.certificate, kit.key),
            variables=variables,
        ) as link:
            note_control(kit, link.port)
            check_door(kit)
            tell(f"coordinator of {kit.federation!r} for {kit.address}; log: {log_path}")
            door = _Register(kit, home, tell)
            while link.process.poll() is None:
                door.look()
                shorten(log_path)
                time.sleep(LOOK_S)
            raise RunError(
                f"the SuperLink exited with {link.process.returncode}",
                hint=f"The log is {log_path}",
            )


class _Register:
    """Keeps the SuperLink's register as the kit's ``sites/`` says.

    What cannot be registered is tried again after `RETRY_S` seconds: a key may be on its way here.
    No trouble with a key ends the coordinator, and the run that may go on.
    """

    def __init__(self, kit: CoordinatorKit, home: Path, tell: Tell) -> None:
        self._kit, self._home, self._tell = kit, home, tell
        self._sites: Mapping[str, str] | None = None
        self._retry_at = math.inf
        self._trouble: list[str] = []

    def look(self) -> None:
        """Synchronize if ``sites/`` has changed, or something went wrong a while ago."""
        sites = self._kit.sites
        if sites == self._sites and time.monotonic() < self._retry_at:
            return
        is_new, self._sites = sites != self._sites, sites
        try:
            done, refused = synchronize(self._kit, sites, self._home)
            trouble = list(refused.values())
        except MdcError as error:
            done, trouble = [], [f"the register of sites is not up to date: {error}"]
        self._retry_at = time.monotonic() + RETRY_S if trouble else math.inf
        for line in [*done, *(line for line in trouble if line not in self._trouble)]:
            self._tell(line)
        self._trouble = trouble
        if is_new:
            self._tell(f"{len(sites)} sites may take part: {', '.join(sites)}")


def status(kit: CoordinatorKit) -> list[SiteStatus]:
    """Return what is known of each site, in site order.

    Raises
    ------
    RunError
        If the coordinator does not run.
    """
    with client(kit) as home:
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

    A coordinator without data of its own goes by the sites' validation data. The run directory is
    where a coordinator in a container, or one that systemd locks in, can write.
    """
    return {
        "output-dir": str(kit.state / "runs" / time.strftime("%Y-%m-%d-%H%M%S")),
        "num-sites": len(kit.sites),
        "dataset": kit.data or kit.contract.to_spec(),
        "data-root": kit.data_root,
        "site-evaluation": not kit.data,
        "max-site-weight": kit.max_site_weight,
    }


@contextmanager
def one_run(kit: CoordinatorKit, run_dir: Path) -> Iterator[None]:
    """Let no other run through the same sites meanwhile, and take note of this one.

    Raises
    ------
    RunError
        If one goes on.
    """
    with only_one(kit, "run", "another run goes on through this coordinator"):
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
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the run directory cannot be made: {error.strerror}",
            where=str(run_dir),
            hint="Name another one with --output; the coordinator must be able to write there too",
        ) from None
    _wait_for_coordinator(kit, config.wait_for_sites_s, tell)
    with client(kit) as home:
        _stop_runs(home, run_dir)  # of a command that was killed: it holds the sites
        try:
            run_through(config, home, run_dir / "engine.log", lambda: answers(kit))
        finally:
            _stop_runs(home, run_dir)


def _wait_for_coordinator(kit: CoordinatorKit, wait_s: float, tell: Tell) -> None:
    deadline = time.monotonic() + wait_s
    if not answers(kit):
        tell(f"waiting up to {wait_s:g} s for the coordinator at {sites_address(kit)}")
        while not answers(kit):
            if time.monotonic() >= deadline:
                raise RunError(
                    f"the coordinator did not run within {wait_s:g} s",
                    where=sites_address(kit),
                    hint=f"Start it: mdc coordinator start {quote(str(kit.folder))}",
                )
            time.sleep(LOOK_S)


def _stop_runs(home: Path, run_dir: Path) -> None:
    """Stop what still runs, when the one who submitted it goes: nobody would judge its end."""
    with suppress(RunError):  # the SuperLink may be what has died
        for run in _running(flwr(home, "list")["runs"]):
            flwr(home, "stop", run)
            wait_for_coordinator_to_end(run_dir)


def _running(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(run["run-id"]) for run in runs if not str(run["status"]).startswith("finished")]


def _last_round(rounds: Sequence[Mapping[str, Any]], site: str) -> int:
    return max((line["round"] for line in rounds if site in line["participants"]), default=0)
