"""The site's worker: a process that answers all messages of a run.

Flower starts a new process for every message. The worker lives as long as the run, so that PyTorch,
the data and a compiled model are loaded once. `mdc site start` starts it again when it ends. Start
it as ``python -m mdc_flower.site.worker FOLDER``.

It ends, and its successor goes on:

- before the first message of another run, because the user's modules may have changed;
- if the process that handed a message over is gone, because nobody waits for the answer;
- if its memory has grown a lot since its first answer with a model.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
from flwr.app import Error, MessageType

from mdc_flower.console.site_log import site_event
from mdc_flower.site.answers import answer
from mdc_flower.site.envelope import pack, unpack
from mdc_flower.site.handover import AGAIN, REPLY, REQUEST, SOCKET

ABANDONED = 75
"""Exit status of a worker whose answer nobody waits for."""

GROWTH, SPARE_BYTES = 2.0, 1024**3
"""A worker may use this many times its first memory, and this many bytes more."""


def serve(folder: Path) -> None:
    """Answer messages, one at a time, until the worker should end."""
    memory = _Memory()
    run: int | None = None
    listener = _listen(folder)
    while True:
        # A process that goes away before its answer is sent is not this worker's concern.
        with suppress(OSError, EOFError), _accept(listener) as connection:
            connection.send_bytes(str(os.getpid()).encode())
            request = json.loads(connection.recv_bytes())
            if run not in (None, request["run"]):
                connection.send_bytes(json.dumps({AGAIN: True}).encode())
                return
            run = request["run"]
            with _ends_when_abandoned(connection):
                answered = _answer(request, folder)
            connection.send_bytes(json.dumps(answered).encode())
            if request["kind"] != MessageType.QUERY and memory.has_grown():
                return


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
    content = unpack(request["content"], folder / REQUEST)
    answered = answer(request["kind"], content, request["run-config"], request["node-config"])
    if isinstance(answered, Error):
        return {"error": {"code": answered.code, "reason": answered.reason}}
    return {"content": pack(answered, folder / REPLY)}


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
