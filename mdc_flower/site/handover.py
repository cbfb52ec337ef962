"""Hand a message over to the site's worker and wait for its answer, without importing PyTorch."""

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import chdir, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Error, RecordDict

from mdc_flower.site.envelope import pack, unpack
from strategies.common.errors import EngineError

WORKER = "MDC_SITE_WORKER"
"""Environment variable with the absolute path of the worker's folder; unset without a worker."""

START_S = 300.0
"""Longest wait for a worker that is being started, in seconds."""

GRACE_S = 30.0
"""Seconds after the end of a message's life until a worker without an answer is considered hung."""

AGAIN = "again"
"""Answer of a worker that ends before it has touched the message; its successor gets it."""

SOCKET, REQUEST, REPLY = "socket", "request.safetensors", "reply.safetensors"
"""Files in the worker's folder: its socket, and the arrays of a message and of its answer."""


def hand_over(
    folder: Path,
    run_id: int,
    kind: str,
    content: RecordDict,
    run_config: Mapping[str, Any],
    node_config: Mapping[str, Any],
    life_s: float,
) -> RecordDict | Error:
    """Return the worker's answer to a message.

    Parameters
    ----------
    folder
        The worker's folder.
    run_id
        The run; a worker serves only one.
    kind, content, run_config, node_config
        As for `mdc_flower.site.answering.answer`. The content is empty afterwards.
    life_s
        Seconds for which somebody waits for the answer. The worker itself checks the deadline of
        training, which ends earlier.

    Raises
    ------
    EngineError
        If the worker does not start, ends before it answers, or hangs.
    """
    sent = json.dumps(
        {
            "run": run_id,
            "kind": kind,
            "run-config": dict(run_config),
            "node-config": dict(node_config),
            "content": pack(content, folder / REQUEST),
        }
    ).encode()
    content.clear()  # the model is in the file now
    give_up = time.monotonic() + START_S
    while True:
        connection, pid = _connect(folder, give_up)
        with connection:
            answered = _ask(connection, pid, sent, life_s + GRACE_S)
        if answered != {AGAIN: True}:
            break
    if error := answered.get("error"):
        return Error(error["code"], error["reason"])
    return unpack(answered["content"], folder / REPLY)


def _connect(folder: Path, give_up: float) -> "tuple[Connection[Any, Any], int]":
    """Return a connection to an idle worker, and the worker's process id."""
    while True:
        # A worker that ends may leave a socket that nobody answers, or close the connection.
        with suppress(OSError, EOFError):
            connection = _connected(folder)
            if connection.poll(max(0.0, give_up - time.monotonic())):
                return connection, int(connection.recv_bytes())
            connection.close()
        if time.monotonic() >= give_up:
            raise EngineError(
                "this site's worker does not answer",
                got=f"nothing within {START_S:g} s",
                hint="The site's log says why it does not start",
            )
        time.sleep(0.1)


def _connected(folder: Path) -> "Connection[Any, Any]":
    client = socket.socket(socket.AF_UNIX)
    with chdir(folder):  # the path of a socket may have only about 100 bytes
        client.connect(SOCKET)
    return Connection(client.detach())


def _ask(
    connection: "Connection[Any, Any]", pid: int, sent: bytes, patience_s: float
) -> dict[str, Any]:
    try:
        connection.send_bytes(sent)
        if connection.poll(patience_s):
            return dict(json.loads(connection.recv_bytes()))
    except (OSError, EOFError):
        raise EngineError(
            "this site's worker ended before it answered",
            hint="It is started again; the site's log says why it ended",
        ) from None
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    raise EngineError(
        "this site's worker hung and was stopped",
        got=f"no answer within {patience_s:.0f} s",
        hint="It is started again",
    )
