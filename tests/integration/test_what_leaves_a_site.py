"""Search every byte that a real SuperNode sends in a run for the site's data."""

import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mdc_flower.data import site_data
from mdc_flower.engines.app_bundle import stage_app
from mdc_flower.engines.flower_processes import (
    COMPLETED,
    environment,
    free_port,
    last_run_status,
    run_command,
    running,
    script,
    superlink,
)
from mdc_flower.engines.guardian import guarded
from strategies.exchange.messages import NUM_EXAMPLES
from strategies.storage.model_files import read_model
from strategies.storage.run_directory import GLOBAL_MODEL, read_history

pytestmark = pytest.mark.integration

CLASSES = ("zebra-fish", "yellow-tang", "x-ray-tetra")
COUNTS = (137, 251, 89)

MODULE = f"""
import numpy as np
from mdc_flower.data import DataSet, Examples

def load():
    random = np.random.default_rng(7)
    labels = np.repeat(np.arange(3), {COUNTS}).astype(np.int64)
    inputs = random.integers(0, 256, (len(labels), 1, 8, 8), dtype=np.uint8)
    some = Examples(inputs[:6], labels[:6])
    return DataSet("fish", Examples(inputs, labels), some, {CLASSES}, (0.5,), (0.25,))
"""


class Recorder:
    """A proxy to the SuperLink that records every byte sent to it."""

    def __init__(self, target_port: int) -> None:
        self._sent: list[bytes] = []
        self._target = target_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def sent(self) -> bytes:
        """Return the bytes sent so far, from all connections in the order of arrival."""
        return b"".join(self._sent)

    def _accept(self) -> None:
        while True:
            try:
                inside, _ = self._server.accept()
            except OSError:  # closed
                return
            outside = socket.create_connection(("127.0.0.1", self._target))
            for source, sink, kept in ((inside, outside, self._sent), (outside, inside, None)):
                threading.Thread(target=_pump, args=(source, sink, kept), daemon=True).start()

    def close(self) -> None:
        """Stop accepting connections."""
        self._server.close()


def _pump(source: socket.socket, sink: socket.socket, kept: list[bytes] | None) -> None:
    try:
        while data := source.recv(1 << 16):
            if kept is not None:
                kept.append(data)
            sink.sendall(data)
    except OSError:
        pass
    finally:
        sink.close()


@contextmanager
def recorder(target_port: int) -> Iterator[Recorder]:
    """Yield a recorder that forwards to a port."""
    started = Recorder(target_port)
    try:
        yield started
    finally:
        started.close()


def test_only_updates_and_the_configured_metrics_leave_a_site(tmp_path: Path) -> None:
    (tmp_path / "fish_lab.py").write_text(MODULE)
    home, log, run_dir = tmp_path / "home", tmp_path / "log.txt", tmp_path / "run"
    home.mkdir()
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    env = {**environment(home), "PYTHONPATH": path}
    node = f'site="berlin" data="fish_lab:load" metrics="{NUM_EXAMPLES},train-loss"'
    keys = (
        f'output-dir="{run_dir}" dataset="fish_lab:load" num-sites=1 epoch-budget=2 '
        'local-epochs=1 model="mlp" site-evaluation=true round-deadline-s=120.0'
    )
    app = stage_app(tmp_path / "app" / "mdc-flower")
    with (
        guarded(home),
        superlink(home, log, variables={"PYTHONPATH": path}) as link,
        recorder(link.port) as recorded,
        running(
            [script("flower-supernode"), "--insecure", "--port", str(free_port()),
             "--superlink", f"127.0.0.1:{recorded.port}", "--node-config", node],
            env, home, log,
        ),
    ):  # fmt: skip
        done = subprocess.run(
            run_command(app, "--run-config", keys),
            cwd=home,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert last_run_status(home) == COMPLETED, done.stdout + log.read_text()

    _search(recorded.sent, run_dir)
    for line in read_history(run_dir):
        assert set(line["participants"]["berlin"]) == {NUM_EXAMPLES, "train-loss"}
        assert line["start_evaluation"] == line["site_evaluation"] == {}


def _search(sent: bytes, run_dir: Path) -> None:
    # With one site the global model is its update. Finding it shows that the search works.
    arrays, _ = read_model(run_dir / GLOBAL_MODEL)
    for name, array in arrays.items():
        assert np.ascontiguousarray(array).tobytes()[:4096] in sent, f"{name} was not recorded"
    scope: dict[str, Any] = {}
    exec(MODULE, scope)
    fish = scope["load"]()
    inputs = fish.train.inputs
    for form in (inputs, (inputs / 255).astype(np.float32), _normalized(inputs)):
        assert not _found(form, sent), "an example of the data set left the site"
    for name in CLASSES:
        assert name.encode() not in sent
    own = site_data(fish, None, -1, seed=1, validation_fraction=0.1)
    for examples in (fish.train, own.train, own.validation):
        for what, text in _spellings(np.bincount(examples.labels)):
            assert text not in sent, f"{what} left the site"


def _normalized(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    return ((inputs.astype(np.float32) / 255 - 0.5) / 0.25).astype(np.float32)


def _found(inputs: NDArray[np.generic], sent: bytes) -> list[int]:
    """Return the rows with eight neighbouring values that occur in the sent bytes."""
    rows = inputs.reshape(len(inputs), -1)
    return [
        row
        for row, values in enumerate(rows)
        for start in range(0, len(values), 8)
        if values[start : start + 8].tobytes() in sent
    ]


def _spellings(counts: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
    """Yield labels and label counts in the encodings in which they could be sent."""
    for number, label in itertools.product((np.int64, np.int32, np.uint8), (1, 2)):
        yield "labels", np.full(24, label, number).tobytes()
    for order in itertools.permutations(counts):
        for kind in (np.int64, np.int32, np.float64, np.float32):
            yield "label counts", np.array(order).astype(kind).tobytes()
        yield "label counts", b"".join(_varint(int(count)) for count in order)
        for separator in (b",", b", ", b" ", b"\n"):
            yield "label counts", separator.join(str(count).encode() for count in order)


def _varint(number: int) -> bytes:
    """Return a number in protobuf's varint encoding."""
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])
