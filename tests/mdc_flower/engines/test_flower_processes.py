"""What is started for Flower, and what is stopped, without a process of Flower's."""

import http.server
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdc_flower.engines.flower_processes import (
    THRESHOLD,
    environment,
    frugal,
    is_healthy,
    local_address,
)


@pytest.fixture
def health() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_proxy_stands_between_processes_of_this_machine(
    health: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody there
    monkeypatch.delenv("no_proxy", raising=False)
    assert is_healthy(health, None)
    assert not is_healthy("127.0.0.1:9", None)
    monkeypatch.setenv("NO_PROXY", "example.org")
    told = environment(Path("/home"))
    for name in ("no_proxy", "NO_PROXY"):
        assert told[name] == "example.org,localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("0.0.0.0", "127.0.0.1:1"),
        ("::", "[::1]:1"),
        ("10.0.0.5", "10.0.0.5:1"),
        ("fd00::5", "[fd00::5]:1"),
        ("host.example.org", "host.example.org:1"),
    ],
)
def test_where_this_machine_reaches_what_listens(listen: str, address: str) -> None:
    assert local_address(listen, 1) == address


CHUNKS = """
from pathlib import Path

large = [bytearray(6 * 2**20)]
large.clear()
chunks, others = [], []
for _ in range(20):
    chunks.append(bytearray(5 * 2**20))
    others.append(bytearray(1000))  # memory behind the chunk that stays in use
chunks.clear()
lines = Path("/proc/self/status").read_text().splitlines()
print(int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_frugal_process_returns_the_memory_of_chunks() -> None:
    usual = {name: value for name, value in os.environ.items() if name != THRESHOLD}
    assert _mb_left(usual) > 80 > 40 > _mb_left(usual | frugal())


def test_the_users_own_threshold_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THRESHOLD, "1")
    assert frugal() == {THRESHOLD: "1"}


def _mb_left(env: dict[str, str]) -> float:
    return float(subprocess.check_output([sys.executable, "-c", CHUNKS], env=env))
