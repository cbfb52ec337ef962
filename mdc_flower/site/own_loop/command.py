"""The site's command: a process that gets the folders of rounds on its standard input."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from mdc_flower.common.references import USERS_FOLDER
from mdc_flower.console.site_log import site_event
from mdc_flower.console.tail import Tail, shorten
from mdc_flower.site.handover import WORKER
from mdc_flower.site.own_loop.protocol import FIRST_ROUND, RESULT
from strategies.common.errors import ConfigError, DeadlineError, MdcError
from strategies.common.files import write_atomically

PROCESS, LOG = "command.json", "command.log"
"""Files in the rounds' folder: which process runs, and its output."""

GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL."""

SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.005, 0.2
"""Seconds between two looks for the result of a round."""

LAST_LINES = 10
"""Lines of the command's output that the operator sees when it fails."""

OURS = frozenset({"PYTHONSAFEPATH", USERS_FOLDER, WORKER})
"""Variables that are only for the site's own processes."""


class Command:
    """The process of a command: started when there is a round, and used for as long as it lives.

    Parameters
    ----------
    command : str
        Program and arguments, quoted as for a shell. No shell is used.
    rounds : Path
        An existing folder for its rounds, its log, and a note of the running process. A process
        that an earlier owner of the folder left behind is ended before another one is started.
    cwd : Path
        Its working folder.
    """

    def __init__(self, command: str, rounds: Path, cwd: Path) -> None:
        self._words = shlex.split(command)
        self._rounds = rounds
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, folder: Path, where: str, stop_at: float, look: Callable[[], None]) -> None:
        """Give a round to the process, and return when its result is there.

        A process that is alive after its last round gets the folder's path as one more line. If
        none is alive, or if it ends normally instead of taking the line, a new one is started.

        Parameters
        ----------
        folder
            The round's folder.
        where
            Site and round, for errors.
        stop_at
            Deadline, a time of `time.monotonic`.
        look
            Called at every look for the result.

        Raises
        ------
        ConfigError
            If the command cannot be started.
        DeadlineError
            If there is no result by the deadline. The process is then ended.
        MdcError
            If the process ends without a result.
        """
        output = Tail(self._rounds / LOG)
        is_new = self._hand_over(folder)
        pause_s = SHORTEST_LOOK_S
        while True:
            status = self._status()  # before the look for the result: it may write and end
            look()
            if (folder / RESULT).is_file():
                break
            if status is not None:
                if status or is_new:
                    raise _ended(status, where, output)
                self._start(folder)
                is_new = True
            if time.monotonic() >= stop_at:
                self.stop()
                raise DeadlineError(
                    "the deadline passed before the command had a result",
                    where=where,
                    hint="The command was stopped",
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_LOOK_S)
        shorten(self._rounds / LOG)

    def stop(self) -> None:
        """End the process and its descendants: SIGTERM, then SIGKILL."""
        if self._status() is None and self._process is not None:
            _end(self._process.pid, GRACE_S)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Tell the process that there are no more rounds, by the end of its input; then end it."""
        if self._process is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._process.communicate(timeout=GRACE_S)
            self.stop()

    def _status(self) -> int | None:
        """Return None if the process runs, else its exit status; 0 if there is none."""
        if self._process is None:
            return 0
        status = self._process.poll()
        if status is not None:
            _kill_group(self._process.pid)  # now, because the number may be used again
            self._process = None
        return status

    def _hand_over(self, folder: Path) -> bool:
        """Give the round to the process; return whether it was started for it."""
        if self._status() is None and self._process is not None:
            with suppress(OSError):  # it has just closed its input
                _tell(self._process, folder)
                return False
        self._start(folder)
        return True

    def _start(self, folder: Path) -> None:
        self.stop()
        self._end_leftover()
        env = {name: value for name, value in os.environ.items() if name not in OURS}
        try:
            with (self._rounds / LOG).open("ab") as log:
                process = subprocess.Popen(
                    self._words,
                    env={**env, FIRST_ROUND: str(folder)},
                    cwd=self._cwd,
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise ConfigError(
                f"the command cannot be started: {error.strerror}",
                where="command",
                got=self._words[0],
            ) from None
        self._process = process
        note = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
        write_atomically(self._rounds / PROCESS, json.dumps(note).encode())
        with suppress(OSError):  # it may have ended already, or have closed its input
            _tell(process, folder)

    def _end_leftover(self) -> None:
        """End the process in the note, if it still runs: its site was killed."""
        with suppress(OSError, ValueError, psutil.Error):
            note = json.loads((self._rounds / PROCESS).read_text())
            if psutil.Process(note["pid"]).create_time() == note["created"]:
                site_event("command-left-behind", pid=note["pid"])
                _end(note["pid"], 0.0)


def _tell(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{folder}\n".encode())


def _end(pid: int, patience_s: float) -> None:
    """End a process, its descendants and its process group."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, patience_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _kill_group(pid)  # descendants whose parent is gone
    psutil.wait_procs(alive, GRACE_S)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _ended(status: int, where: str, output: Tail) -> MdcError:
    """Return the error for a process that ended; its last lines go to the site's log only."""
    lines = [line.decode("utf-8", "replace") for line in output.new_lines()[-LAST_LINES:]]
    site_event("command-ended", status=status, lines=lines)
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return MdcError(
        "the command ended without a result",
        where=where,
        got=how,
        expected="result.json, and then the end or the wait for the next round",
        hint="The site's log has its last lines",
    )
