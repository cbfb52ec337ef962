"""The site's worker: a process that answers all messages of a run.

Flower starts a new process for every message. The worker lives as long as the run, so that PyTorch,
the data and a compiled model are loaded once. `mdc site start` starts it again when it ends. Start
it as ``python -m mdc_flower.site.worker FOLDER``.

It ends, and its successor goes on:

- before the first message of another run, because the user's modules may have changed;
- if the process that handed a message over is gone, because nobody waits for the answer;
- if its memory has grown a lot since its first answer with a model;
- if it has had nothing to do for a while, to give back its memory and that of the GPU.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from logging import ERROR
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
from flwr.app import Error, MessageType

from mdc_flower.console.site_log import site_event
from mdc_flower.site.answering import answer
from mdc_flower.site.envelope import pack, unpack
from mdc_flower.site.error_replies import error_of
from mdc_flower.site.group import current
from mdc_flower.site.handover import AGAIN, REPLY, REQUEST, SOCKET
from strategies.common.log import log

IDLE_S = 1800.0
"""Seconds without a message after which a worker that has served a run ends."""

ABANDONED = 75
"""Exit status of a worker whose answer nobody waits for."""

BROKEN = 76
"""Exit status of rank 0 of a group whose ranks no longer do the same."""

GROWTH, SPARE_BYTES = 2.0, 1024**3
"""A worker may use this many times its first memory, and this many bytes more."""


def serve(folder: Path) -> None:
    """Answer messages, one at a time, until the worker should end."""
    memory = _Memory()
    run: int | None = None
    listener = _listen(folder)
    while True:
        try:
            connection = _accept(listener)
        except TimeoutError:
            return  # its successor holds no data and no memory of a GPU
        with connection:
            request = _receive(connection)
            if request is None:
                continue
            if run not in (None, request["run"]):
                _send(connection, {AGAIN: True})
                return
            run = request["run"]
            listener.settimeout(IDLE_S)
            with _ends_when_abandoned(connection):
                answered = _answer(request, folder)
            _send(connection, answered)
            if (group := current()) and group.is_broken:
                os._exit(BROKEN)
            if request["kind"] != MessageType.QUERY and memory.has_grown():
                return


def _receive(connection: "Connection[Any, Any]") -> dict[str, Any] | None:
    """Return the message of a process; None if the process is gone."""
    with suppress(OSError, EOFError):
        connection.send_bytes(str(os.getpid()).encode())
        return dict(json.loads(connection.recv_bytes()))
    return None


def _send(connection: "Connection[Any, Any]", answered: dict[str, Any]) -> None:
    """Send an answer, unless the process is gone."""
    with suppress(OSError):
        connection.send_bytes(json.dumps(answered).encode())


def _accept(listener: socket.socket) -> "Connection[Any, Any]":
    return Connection(listener.accept()[0].detach())


class _Memory:
    """Compares this process's memory with what it was after its first answer with a model."""

    def __init__(self) -> None:
        self._first_bytes = 0

    def has_grown(self) -> bool:
        now_bytes = psutil.Process().memory_info().rss
        self._first_bytes = self._first_bytes or now_bytes
        if now_bytes <= GROWTH * self._first_bytes + SPARE_BYTES:
            return False
        site_event("worker-grew", first_bytes=self._first_bytes, now_bytes=now_bytes)
        return True


def _listen(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    (folder / SOCKET).unlink(missing_ok=True)
    with chdir(folder):  # the path of a socket may have only about 100 bytes
        listener.bind(SOCKET)
    listener.listen()
    return listener


def _answer(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        content = unpack(request["content"], folder / REQUEST)
        answered = answer(request["kind"], content, request["run-config"], request["node-config"])
        if not isinstance(answered, Error):
            return {"content": pack(answered, folder / REPLY)}
    except Exception as error:  # the files with the arrays cannot be read or written
        log(ERROR, "the message could not be handed over", exc_info=error)
        answered = error_of(error, private=True)
    return {"error": {"code": answered.code, "reason": answered.reason}}


@contextmanager
def _ends_when_abandoned(connection: "Connection[Any, Any]") -> Iterator[None]:
    """End this process if the other end closes the connection during the block."""
    stop, stopped = Pipe()

    def watch() -> None:
        # The other end sends nothing more, so there is something to read only when it is gone.
        if stopped not in wait([connection, stopped]):
            site_event("worker-abandoned")
            os._exit(ABANDONED)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.send_bytes(b"-")
        watcher.join()
        stop.close()
        stopped.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
