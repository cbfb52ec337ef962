"""A real site: run its SuperNode in the foreground, and show its events to the operator."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from mdc_flower.console.live_view import describe_lr, describe_work
from mdc_flower.console.site_log import SITE_LOG
from mdc_flower.console.tail import Tail, shorten
from mdc_flower.deployment.kits.kits import SiteKit
from mdc_flower.deployment.kits.private_files import PRIVATE, write_file
from mdc_flower.deployment.site import state_folder
from mdc_flower.deployment.site.check import ask_coordinator
from mdc_flower.deployment.site.node_config import node_config
from mdc_flower.deployment.site.worker_process import FOLDER, WorkerProcess
from mdc_flower.engines.flower_processes import environment, free_port, frugal, running
from mdc_flower.engines.guardian import guarded
from strategies.common.errors import ConfigError, RunError
from strategies.exchange.messages import NUM_VALIDATION
from strategies.exchange.metrics import ALWAYS, TRAIN, VALIDATION
from strategies.storage.run_directory import read_event

EVENTS, LOG, NODE_CONFIG = "events.jsonl", "supernode.log", "node-config.toml"
LOOK_S = 0.5

LONGEST_LINE = 200
"""Characters shown of what a command says about its progress."""

STILL_ONLINE_S = 120.0
"""Maximum time in seconds for which the coordinator may consider a killed SuperNode online."""

Tell = Callable[[str], None]


@contextmanager
def only_one(kit: SiteKit) -> Iterator[None]:
    """Allow no other SuperNode of this kit during the block.

    Raises
    ------
    RunError
        If one runs, or the kit's ``state`` cannot be written to.
    """
    with state_folder.only_one(kit, "site", "this site is already running"):
        yield


def wait_until_offline(kit: SiteKit, tell: Tell) -> None:
    """Wait while the coordinator considers a killed SuperNode of this site online.

    Flower accepts only one SuperNode per key. The caller holds `only_one`, so no SuperNode runs
    from this kit.
    """
    deadline = time.monotonic() + STILL_ONLINE_S
    is_waiting = False
    while time.monotonic() < deadline:
        try:
            about, _ = ask_coordinator(kit)
        except RunError:
            return  # the checks give a better message
        if not about.get("online"):
            return
        if not is_waiting:
            tell("waiting until the coordinator notices that the last SuperNode has ended")
            is_waiting = True
        time.sleep(2.0)


def start(kit: SiteKit, tell: Tell, num_examples: int = 0) -> None:
    """Run a site's SuperNode until it is stopped; the caller must hold `only_one`.

    Parameters
    ----------
    kit
        The site's kit, with the data set to use. Logs are in its ``state``.
    tell
        Called with each line to show to the operator.
    num_examples
        Number of training examples in the data set; 0 if they were not counted.

    Raises
    ------
    RunError
        If the SuperNode ends by itself, or a file cannot be written.
    """
    home, log_path, event_path = state_folder.open_state(kit), kit.state / LOG, kit.state / EVENTS
    # Pass the config in a file: all users of the machine can read the command line, and so the
    # path of the data.
    config_path = kit.state / NODE_CONFIG
    write_file(config_path, tomli_w.dumps(node_config(kit, num_examples)).encode(), PRIVATE)
    command = [sys.executable, "-m", "mdc_flower.deployment.site.supernode"]
    command += ["--superlink", kit.address, "--root-certificates", str(kit.ca)]
    command += ["--auth-supernode-private-key", str(kit.key)]
    command += ["--node-config", str(config_path), "--port", str(free_port())]
    events, trouble = Tail(event_path), Tail(log_path)
    env = {**environment(home), SITE_LOG: str(event_path)}
    worker = WorkerProcess(kit.state / FOLDER, env, log_path, tell, kit.launch)
    tell(f"{kit.site} joins federation {kit.federation!r} at {kit.address}; log: {log_path}")
    with (
        guarded(home),
        worker,
        running(command, env | frugal() | worker.variables, Path.cwd(), log_path) as process,
    ):
        view = SiteView()
        while process.poll() is None:
            worker.look()
            _show(events, trouble, view, tell)
            for path in (log_path, event_path):
                shorten(path)
            time.sleep(LOOK_S)
        _show(events, trouble, view, tell)
        raise _ended(kit, process.returncode, log_path)


def start_ranks(kit: SiteKit, node_rank: int, tell: Tell) -> None:
    """Run the processes of a further machine of a site, until they are stopped.

    Parameters
    ----------
    kit
        The site's kit, at the same path as on the first machine.
    node_rank
        The number of this machine, >= 1.
    tell
        Called with each line to show to the operator.

    Raises
    ------
    ConfigError
        If the kit does not have so many machines.
    """
    if not 0 < node_rank < kit.launch.nodes:
        raise ConfigError(
            "the site has no such machine",
            where="--node-rank",
            got=node_rank,
            expected=f"below nodes = {kit.launch.nodes} in the kit's [launch], and above 0; the "
            "first machine starts without this option",
        )
    # Several machines may share the kit's folder.
    name = f"node-{node_rank}"
    with state_folder.only_one(kit, name, "the processes of this machine are already running"):
        home, log_path = kit.state / f"flwr-{name}", kit.state / f"{name}.log"
        home.mkdir(mode=0o700, exist_ok=True)
        folder = kit.state / f"{FOLDER}-{name}"
        worker = WorkerProcess(folder, environment(home), log_path, tell, kit.launch, node_rank)
        tell(f"{kit.site}: machine {node_rank} of {kit.launch.nodes} joins; log: {log_path}")
        with guarded(home), worker:
            while True:
                worker.look()
                time.sleep(LOOK_S)


def _ended(kit: SiteKit, status: int, log_path: Path) -> RunError:
    try:
        about, _ = ask_coordinator(kit)
    except RunError:
        about = {"registered": True}
    if not about.get("registered"):
        return RunError(
            "the coordinator no longer accepts this site's key",
            where=kit.site,
            hint="The key was revoked or renewed: ask the coordinator",
        )
    return RunError(
        f"the SuperNode ended with exit status {status}",
        where=kit.site,
        hint=f"The log is {log_path}. Start the site again",
    )


def _show(events: Tail, trouble: Tail, view: "SiteView", tell: Tell) -> None:
    for line in events.new_lines():
        if text := view.line(read_event(line)):
            tell(text)
    for line in trouble.new_lines():
        if text := _trouble(line):
            tell(text)


def _trouble(line: bytes) -> str:
    """Return a line of Flower's log without its colors if it is a warning or an error, else ""."""
    text = line.decode("utf-8", "replace")
    for code in ("\x1b[93m", "\x1b[91m", "\x1b[92m", "\x1b[0m"):
        text = text.replace(code, "")
    return text.strip() if text.lstrip().startswith(("WARN", "ERROR")) else ""


def _values(values: Any) -> str:
    """Return what a command said about its progress, in one line."""
    if isinstance(values, dict):
        values = ", ".join(f"{name} {value}" for name, value in values.items())
    return "".join(letter for letter in str(values) if letter.isprintable())[:LONGEST_LINE]


class SiteView:
    """Turns the events of a site into lines for its operator."""

    def __init__(self) -> None:
        self._plan: Mapping[str, Any] = {}

    def line(self, event: Mapping[str, Any]) -> str:
        """Return the line for an event; empty for an event that is not shown."""
        match event.get("event"):
            case "hello":
                return "a run starts or resumes: the coordinator knows that this site is online"
            case "training":
                self._plan = event
                return (
                    f"round {event['round']}: {describe_work(event)} over "
                    f"{_examples(event)}, learning rate {describe_lr(event)}"
                )
            case "progress":
                return self._progress(event)
            case "trained":
                return (
                    f"round {event['round']}: trained in {event['train-seconds']:.1f} s, "
                    f"{_metrics_in(event, TRAIN)}; sending the update"
                )
            case "continued":
                return f"continues after epoch {event['epoch']}, which was saved before"
            case "state-not-written":
                return (
                    f"round {event['round']}: the {event['state']}'s state could not be written; "
                    "the next round begins without it"
                )
            case "sent-again":
                return f"round {event['round']}: the finished update is sent again"
            case "evaluated" if NUM_VALIDATION not in event:
                return "last model: not evaluated, because this site has no validation examples"
            case "evaluated":
                return (
                    f"last model: {_metrics_in(event, VALIDATION)} on {event[NUM_VALIDATION]} "
                    "validation examples of this site"
                )
            case "command-training":
                self._plan = event
                return (
                    f"round {event['round']}: the site's command trains, "
                    f"{describe_work(event)}, learning rate {describe_lr(event)}"
                )
            case "command-progress":
                return f"round {self._plan.get('round', '?')}: {_values(event['values'])}"
            case "command-trained":
                return (
                    f"round {event['round']}: the command trained in "
                    f"{event['train-seconds']:.1f} s; sending the update"
                )
            case "command-evaluated":
                return "last model: the command evaluated it"
            case "command-ended":
                lines = "".join(f"\n    {line}" for line in event["lines"])
                return f"the command ended without a result; its last lines:{lines}"
            case "command-left-behind":
                return "a command that this site had left behind is ended"
            case "app-refused":
                return f"this site refuses to run the coordinator's app: {event['reason']}"
            case "worker-grew":
                return (
                    f"the worker uses {event['now_bytes'] / 2**30:.1f} GiB of memory, after "
                    f"{event['first_bytes'] / 2**30:.1f} GiB at first; it is started again"
                )
            case "rank-ended":
                return (
                    f"process {event['rank']} of this site ended ({event['how']}); all of its "
                    "processes are started again"
                )
            case "machine-lost":
                return f"{event['why']}; all processes of this site are started again"
            case "worker-abandoned":
                return "nobody waits for the worker's answer any more; it is started again"
            case "failed":
                return f"{event['message']} failed: {event['error']}"
        return ""

    def _progress(self, event: Mapping[str, Any]) -> str:
        done, total, seconds = event["step"], event["num_steps"], event["seconds"]
        epochs = self._plan.get("local_epochs")
        epoch = f"epoch {event['epoch']}" + (f" of {epochs}" if epochs else "") + ", "
        return (
            f"round {self._plan.get('round', '?')}: "
            + ("" if self._plan.get("local_steps") or self._plan.get("local_parts") else epoch)
            + f"step {done} of {total}, learning rate {event['lr']:.3g}, "
            f"loss {event['loss']:.4f}, {event['num_seen'] / max(seconds, 1e-9):.0f} examples/s, "
            f"about {seconds * (total - done) / done:.0f} s left"
        )


def _metrics_in(event: Mapping[str, Any], prefix: str) -> str:
    """Return the metrics in an event that are numbers, as text."""
    return ", ".join(
        f"{name.removeprefix(prefix).replace('-', ' ')} {value:.4f}"
        for name, value in event.items()
        if name.startswith(prefix) and name not in ALWAYS and isinstance(value, float)
    )


def _examples(event: Mapping[str, Any]) -> str:
    """Return how many examples a round is over; None means a stream."""
    return "a stream" if event["examples"] is None else f"{event['examples']} examples"
