"""The coordinator of real sites: a long-lived SuperLink, the status of its sites, and runs."""

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
    check_sites_listener,
    client,
    sites_address,
    write_control_address,
)
from mdc_flower.deployment.coordinator.site_keys import Node, nodes, register_path, synchronize
from mdc_flower.deployment.coordinator.superlink import FEDERATION, LISTEN
from mdc_flower.deployment.kits.kits import KIT, CoordinatorKit, join_address
from mdc_flower.deployment.site.state_folder import only_one, open_state
from mdc_flower.engines.flower_processes import (
    Tls,
    flwr,
    frugal,
    superlink,
)
from mdc_flower.engines.guardian import guarded
from mdc_flower.engines.submission import run_through, wait_for_coordinator_to_end
from strategies.common.errors import MdcError, RunError
from strategies.common.files import StorageError, write_atomically
from strategies.storage.run_directory import HISTORY, read_events, read_history

LOOK_S = 2.0
"""Seconds between two checks of the kit's ``sites/`` and of the SuperLink."""

RETRY_S = 30.0
"""Seconds before the coordinator tries again to register a key that failed."""

DATABASE, LOG, LAST_RUN = "superlink.db", "superlink.log", "last-run"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SiteStatus:
    """Status of one site, as shown to the coordinator's operator.

    Attributes
    ----------
    node : Node
        Whether the site is online, and since when.
    version : str
        Version of mdc-flower that the site had in the last run; empty if it did not take part.
    last_round : int
        Newest round of the last run that includes the site's update; 0 for none.
    """

    node: Node
    version: str
    last_round: int


def start(kit: CoordinatorKit, install_dependencies: bool, tell: Tell) -> None:
    """Run the federation's SuperLink until it is stopped; sites may be added while it runs.

    Parameters
    ----------
    kit
        The coordinator's kit. Database, log and register are in its ``state``.
    install_dependencies
        Whether Flower may install the dependencies that an app declares.
    tell
        Called with each line to show to the operator.

    Raises
    ------
    RunError
        If the SuperLink already runs, does not start, or dies.
    """
    log_path = kit.state / LOG
    home = open_state(kit)
    with only_one(kit, "coordinator", "the coordinator is already running"), guarded(home):
        check_address(kit)
        options = ["--enable-supernode-auth", "--database", str(kit.state / DATABASE)]
        variables = {
            **frugal(),
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
            write_control_address(kit, link.port)
            check_sites_listener(kit)
            tell(f"coordinator of {kit.federation!r} for {kit.address}; log: {log_path}")
            register = _Register(kit, home, tell)
            while link.process.poll() is None:
                register.update()
                shorten(log_path)
                time.sleep(LOOK_S)
            raise RunError(
                f"the SuperLink exited with {link.process.returncode}",
                hint=f"The log is {log_path}",
            )


class _Register:
    """Keeps the SuperLink's register in step with the kit's ``sites/``.

    If a key cannot be registered, it tries again after `RETRY_S` seconds, because the file may
    still be on its way. A problem with a key never ends the coordinator or a run in progress.
    """

    def __init__(self, kit: CoordinatorKit, home: Path, tell: Tell) -> None:
        self._kit, self._home, self._tell = kit, home, tell
        self._sites: Mapping[str, str] | None = None
        self._retry_at = math.inf
        self._trouble: list[str] = []

    def update(self) -> None:
        """Synchronize if ``sites/`` has changed, or if a retry is due."""
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
    """Return the status of each site, in site order.

    Raises
    ------
    RunError
        If the coordinator does not run.
    """
    with client(kit) as home:
        registered = nodes(kit, home)
    run_dir = last_run(kit)
    versions: dict[str, str] = {}
    rounds: list[dict[str, Any]] = []
    if run_dir is not None:
        for event in read_events(run_dir, "run-started"):
            versions |= event.get("versions", {})
        rounds = read_history(run_dir) if (run_dir / HISTORY).is_file() else []
    return [
        SiteStatus(node, versions.get(node.name, ""), _last_round(rounds, node.name))
        for node in registered
    ]


def last_run(kit: CoordinatorKit) -> Path | None:
    """Return the directory of the newest run; None before the first."""
    path = kit.state / LAST_RUN
    return Path(path.read_text().strip()) if path.is_file() else None


def run_defaults(kit: CoordinatorKit) -> dict[str, Scalar]:
    """Return the kit's defaults for keys of the run config.

    A coordinator without data uses the sites' validation data. The default run directory is in
    ``state``, which is writable for a coordinator in a container or under systemd's restrictions.
    """
    agreed: dict[str, Scalar] = {}
    if kit.job:
        agreed = {"job": kit.job, "exchange": kit.exchange, "keep": kit.keep}
    if kit.data:
        agreed["dataset"] = kit.data
        if kit.contract is not None:
            agreed["contract"] = kit.contract.to_spec()
    elif kit.contract is not None:
        agreed["dataset"] = kit.contract.to_spec()
    return {
        **agreed,
        "output-dir": str(kit.state / "runs" / time.strftime("%Y-%m-%d-%H%M%S")),
        "num-sites": len(kit.sites),
        "data-root": kit.data_root,
        "site-evaluation": not kit.data or bool(kit.keep),
        "max-site-weight": kit.max_site_weight,
    }


@contextmanager
def one_run(kit: CoordinatorKit, run_dir: Path) -> Iterator[None]:
    """Allow no other run on the same coordinator during the block; record this run as the last.

    Raises
    ------
    RunError
        If another run is in progress.
    """
    with only_one(kit, "run", "another run is in progress on this coordinator"):
        write_atomically(kit.state / LAST_RUN, f"{run_dir}\n".encode())
        yield


def run_on_sites(kit: CoordinatorKit, config: RunConfig, tell: Tell) -> None:
    """Run a config on the federation's sites; return when it has finished.

    If the coordinator does not run yet or is restarting, wait for it.

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
            f"the run directory cannot be created: {error.strerror}",
            where=str(run_dir),
            hint="Choose another one with --output; the coordinator must be able to write there",
        ) from None
    _wait_for_coordinator(kit, config.wait_for_sites_s, tell)
    with client(kit) as home:
        _stop_runs(home, run_dir)  # a run left by a killed command would occupy the sites
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
    """Stop all unfinished runs, because no command waits for them any more."""
    with suppress(RunError):  # the SuperLink may have died
        for run in _running(flwr(home, "list")["runs"]):
            flwr(home, "stop", run)
            wait_for_coordinator_to_end(run_dir)


def _running(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(run["run-id"]) for run in runs if not str(run["status"]).startswith("finished")]


def _last_round(rounds: Sequence[Mapping[str, Any]], site: str) -> int:
    return max((line["round"] for line in rounds if site in line["participants"]), default=0)
