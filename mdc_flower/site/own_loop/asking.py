"""Ask a site's command for one round: write the folder, wait for the result, read it."""

import atexit
import json
import math
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from mdc_flower.config import SiteConfig
from mdc_flower.console.site_log import site_event
from mdc_flower.console.tail import Tail
from mdc_flower.site.own_loop.command import Command
from mdc_flower.site.own_loop.protocol import PROGRESS
from mdc_flower.site.own_loop.request import Arrays, new_folder, write_request
from mdc_flower.site.own_loop.result import Result, read_result
from strategies.common.errors import ConfigError
from strategies.common.fault_points import reach
from strategies.method.round_plan import RoundPlan

ROUNDS = "own-loop"
"""The folder in the site's ``state`` for the rounds of its command."""

PROGRESS_S = 5.0
"""Seconds between two lines of progress in the site's log."""


def ask(
    site: SiteConfig, kind: str, arrays: Arrays, plan: RoundPlan | None, stop_at: float, where: str
) -> tuple[Path, Result]:
    """Let the site's command do one round; return its folder and the result.

    Parameters
    ----------
    kind
        ``train`` or ``evaluate``.
    arrays, plan
        The global model, and the plan to train it by; no plan to evaluate.
    stop_at
        Deadline, a time of `time.monotonic`.
    where
        Site and round, for errors.

    Raises
    ------
    ConfigError, DeadlineError, MdcError
        See `Command.ask` and `read_result`.
    """
    rounds = Path(site.state) / ROUNDS if site.state else _temporary_folder(site.name)
    rounds.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = new_folder(rounds, kind)
    write_request(folder, kind, site.name, arrays, plan, stop_at - time.monotonic())
    reach("command-asked", kind=kind, path=str(folder))
    command = _command(site.command, rounds, working_folder(site))
    command.ask(folder, where, stop_at, _progress(folder))
    reach("command-answered", kind=kind, path=str(folder))
    return folder, read_result(folder, kind, site.name)


def working_folder(site: SiteConfig) -> Path:
    """Return the working folder of a site's command."""
    return Path(site.command_folder or Path.cwd())


def check_command(command: str, cwd: Path) -> str:
    """Return the path of a command's program.

    Raises
    ------
    ConfigError
        If there is no such program, or it may not be executed.
    """
    try:
        program = shlex.split(command)[0]
    except (ValueError, IndexError):
        # The whole command is not in the error, which the coordinator gets.
        raise ConfigError("the command cannot be split into words", where="command") from None
    found = shutil.which(str(cwd / program) if "/" in program else program)
    if found is None:
        raise ConfigError(
            "the command's program does not exist or may not be executed",
            where="command",
            got=program,
            hint="A relative path starts from the kit's folder; a script needs `chmod +x`",
        )
    return found


def close_commands() -> None:
    """End the processes that this process keeps between messages; each may finish first."""
    while _commands:
        _commands.popitem()[1].close()


_commands: dict[Path, Command] = {}
"""The command of each folder of rounds."""

atexit.register(close_commands)


def _command(command: str, rounds: Path, cwd: Path) -> Command:
    if rounds not in _commands:
        _commands[rounds] = Command(command, rounds, cwd)
    return _commands[rounds]


@cache
def _temporary_folder(site: str) -> Path:
    folder = tempfile.mkdtemp(prefix=f"mdc-{site}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _progress(folder: Path) -> Callable[[], None]:
    """Return a function that logs the newest line of progress now and then."""
    tail, shown_at = Tail(folder / PROGRESS), -math.inf

    def look() -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at < PROGRESS_S or not (lines := tail.new_lines()):
            return
        shown_at = time.monotonic()
        try:
            values = json.loads(lines[-1])
        except ValueError:
            values = "a line that is not JSON"
        site_event("command-progress", values=values)

    return look
