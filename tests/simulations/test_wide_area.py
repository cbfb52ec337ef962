"""The wide-area network is as slow, late and lossy as its link says, and leaves nothing behind."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from simulations import wide_area as module
from simulations.wide_area import (
    NAMESPACES,
    TUN_DEVICE,
    Link,
    Party,
    WideArea,
    check_machine,
    wide_area,
)
from strategies.errors import ConfigError, RunError

LINK = Link(rate_bps=20e6, round_trip_s=0.02)
PORT = 5000
CLONE_NEWNET = 0x40000000
SO_RCVBUFFORCE = 33

# Enters a network, names its relay and a namespace, and waits for its end.
OWNER = """
import time
from simulations.wide_area import Link, wide_area
with wide_area(["a"], Link(1e6, 0.0)) as area:
    print(area.relay_pid, area.sites["a"].namespace, flush=True)
    time.sleep(60)
"""


def missing() -> str:
    try:
        check_machine()
    except RunError as error:
        return str(error)
    return ""


needs_root = pytest.mark.skipif(bool(missing()), reason=missing())


@contextmanager
def inside(party: Party) -> Iterator[None]:
    """Let this thread make sockets in the party's namespace: a socket stays where it was made."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with (
        Path("/proc/thread-self/ns/net").open() as home,
        (NAMESPACES / party.namespace).open() as there,
    ):
        assert setns(there.fileno(), CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert setns(home.fileno(), CLONE_NEWNET) == 0


@contextmanager
def listening(party: Party) -> Iterator[socket.socket]:
    with inside(party):
        server = socket.create_server((party.address, PORT))
    with server:
        yield server


def connect(start: Party, end: Party) -> socket.socket:
    with inside(start):
        return socket.create_connection((end.address, PORT), timeout=20)


class Transfer:
    """Bytes that go from one party to another, as fast as TCP carries them, during the block."""

    def __init__(self, start: Party, end: Party) -> None:
        self.received_bytes = 0
        with listening(end) as server:
            self.sender = connect(start, end)
            self.receiver, _ = server.accept()
        self.sender.settimeout(None)
        self.threads = [threading.Thread(target=work) for work in (self._send, self._receive)]

    def __enter__(self) -> "Transfer":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for end in (self.sender, self.receiver):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.sender.close()
        self.receiver.close()

    def _send(self) -> None:
        with suppress(OSError):
            while True:
                self.sender.sendall(bytes(65536))

    def _receive(self) -> None:
        with suppress(OSError):
            while data := self.receiver.recv(65536):
                self.received_bytes += len(data)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def connect_seconds(start: Party, end: Party) -> float:
    """Return the shortest of several times to connect: a busy machine only makes it longer."""
    seconds = []
    with listening(end):
        for _ in range(5):
            started = time.monotonic()
            connect(start, end).close()
            seconds.append(time.monotonic() - started)
    return min(seconds)


def send_datagrams(area: WideArea, count: int, size: int) -> set[int]:
    """Send numbered datagrams from site a to the coordinator; return those that arrived."""
    with inside(area.coordinator):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(area.sites["a"]):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8_000_000)
        receiver.bind((area.coordinator.address, PORT))
        receiver.settimeout(0.2)
        for number in range(count):
            data = number.to_bytes(2, "big") + bytes(size - 2)
            sender.sendto(data, (area.coordinator.address, PORT))
        wait_until(lambda: num_handled(area) == count)
        arrived = set()
        with suppress(TimeoutError):
            while True:
                arrived.add(int.from_bytes(receiver.recv(2), "big"))
    return arrived


def num_handled(area: WideArea) -> int:
    up = area.counters("a").up
    return up.num_forwarded + up.num_lost + up.num_overflowed + up.num_cut


def left_behind() -> list[str]:
    """Return the namespaces and open devices of networks of this process."""
    names = [path.name for path in NAMESPACES.glob(f"mdc-wan-{os.getpid()}-*")]
    descriptors = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    targets = [str(path.readlink()) for path in descriptors]
    return names + [target for target in targets if target == str(TUN_DEVICE)]


@needs_root
def test_round_trip() -> None:
    with wide_area(["a", "b"], Link(rate_bps=50e6, round_trip_s=0.1)) as area:
        a, b = area.sites.values()
        # Connecting takes one round trip; between sites, one of each site's link.
        assert 0.099 < connect_seconds(a, area.coordinator) < 0.15
        assert 0.099 < connect_seconds(area.coordinator, b) < 0.15
        assert 0.199 < connect_seconds(a, b) < 0.28


@needs_root
@pytest.mark.parametrize("direction", ["up", "down"])
def test_rate_is_reached_and_not_exceeded(direction: str) -> None:
    with wide_area(["a"], LINK) as area:
        ends = area.sites["a"], area.coordinator
        start, end = ends if direction == "up" else reversed(ends)
        with Transfer(start, end) as transfer:
            wait_until(lambda: transfer.received_bytes > 500_000)
            before, started = transfer.received_bytes, time.monotonic()
            time.sleep(2.5)
            received = transfer.received_bytes - before
            rate_bps = 8 * received / (time.monotonic() - started)
    # 1448 of 1500 bytes are payload: 0.965 of the rate is all there is.
    assert 0.6 < rate_bps / LINK.rate_bps < 1.1


@needs_root
def test_each_site_has_the_rate_to_itself() -> None:
    with wide_area(["a", "b"], LINK) as area:
        a, b = area.sites.values()
        with Transfer(a, area.coordinator) as one, Transfer(b, area.coordinator) as other:
            started = time.monotonic()
            time.sleep(2.5)
            received = one.received_bytes + other.received_bytes
            rate_bps = 8 * received / (time.monotonic() - started)
    assert 1.2 < rate_bps / LINK.rate_bps < 2.2


@needs_root
def test_a_full_queue_drops_what_comes() -> None:
    # 100 packets of 1500 bytes at 1 Mbit/s take 1.2 s, and at most 0.1 s of them may wait.
    with wide_area(["a"], Link(rate_bps=1e6, round_trip_s=0.0, queue_s=0.1)) as area:
        arrived = send_datagrams(area, count=100, size=1500 - 28)
        up = area.counters("a").up
    assert up.num_overflowed > 50
    assert up.num_forwarded >= 9
    assert len(arrived) == up.num_forwarded
    assert up.forwarded_bytes == 1500 * up.num_forwarded
    assert (up.num_lost, up.num_cut) == (0, 0)


@needs_root
def test_loss_is_the_given_share_and_follows_from_the_seed() -> None:
    arrivals = []
    for seed in (1, 1, 2):
        with wide_area(["a"], Link(rate_bps=50e6, round_trip_s=0.02, loss=0.1), seed) as area:
            arrivals.append(send_datagrams(area, count=2000, size=100))
            up = area.counters("a").up
        # 200 expected, standard deviation sqrt(2000 * 0.1 * 0.9) = 13.4.
        assert 140 < up.num_lost < 260
        assert up.num_overflowed == 0
        assert len(arrivals[-1]) == 2000 - up.num_lost
    assert arrivals[0] == arrivals[1]
    assert arrivals[0] != arrivals[2]


@needs_root
def test_a_transfer_outlives_a_cut() -> None:
    with (
        wide_area(["a", "b"], LINK) as area,
        Transfer(area.sites["a"], area.coordinator) as cut,
        Transfer(area.sites["b"], area.coordinator) as whole,
    ):
        wait_until(lambda: cut.received_bytes > 500_000)
        with area.cut_off("a"):
            time.sleep(0.2)  # what has arrived is taken out of the socket
            before, others_before = cut.received_bytes, whole.received_bytes
            time.sleep(1.0)
            assert cut.received_bytes == before
            assert whole.received_bytes > others_before
            assert area.counters("a").up.num_cut > 0
        wait_until(lambda: cut.received_bytes > before + 1_000_000)
        assert area.counters("b").up.num_cut == 0


@needs_root
def test_a_cut_drops_what_is_under_way() -> None:
    with wide_area(["a"], Link(rate_bps=1e6, round_trip_s=2.0)) as area:
        with inside(area.sites["a"]), socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(b"late", (area.coordinator.address, PORT))
        # It takes 1 s, and nothing tells that it is under way.
        time.sleep(0.3)
        area.cut("a")
        area.restore("a")
        time.sleep(1.0)
        up = area.counters("a").up
    assert (up.num_cut, up.num_forwarded) == (1, 0)


@needs_root
def test_commands_run_in_the_namespace() -> None:
    with wide_area(["a"], LINK) as area:
        for party in (area.coordinator, area.sites["a"]):
            assert party.command("ip", "addr") == [*party.command(), "ip", "addr"]
            done = subprocess.run(party.command("ip", "addr"), capture_output=True, text=True)
            assert f"inet {party.address}/24" in done.stdout
            assert "LOOPBACK,UP" in done.stdout


@needs_root
def test_congestion_control_can_be_chosen() -> None:
    # Reno is the one that every kernel has and every namespace may choose.
    with wide_area(["a"], LINK, congestion_control="reno") as area:
        assert area.congestion_control == "reno"
        with inside(area.sites["a"]), socket.socket() as plain:
            name = plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            assert name.rstrip(b"\0") == b"reno"
    with (
        pytest.raises(RunError, match=r"congestion control: .*'unheard-of'.*reno"),
        wide_area(["a"], LINK, congestion_control="unheard-of"),
    ):
        pass
    assert left_behind() == []


@needs_root
@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_nothing_is_left_behind(error: type[Exception] | None) -> None:
    with suppress(ZeroDivisionError), wide_area(["a", "b"], LINK) as area:
        assert len(left_behind()) == 6  # a namespace and a device of each
        if error is not None:
            raise error
    assert left_behind() == []
    assert not psutil.pid_exists(area.relay_pid)


@needs_root
def test_nothing_is_left_of_a_set_up_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An `ip` that gives the coordinator its address and refuses the site's.
    (tmp_path / "ip").write_text(
        f'#!/bin/sh\ncase "$*" in *"addr add 10.77.0.2"*) echo no >&2; exit 1;; esac\n'
        f'exec {shutil.which("ip")} "$@"\n'
    )
    (tmp_path / "ip").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RunError, match=r"addr add 10\.77\.0\.2.*no"), wide_area(["a"], LINK):
        pass
    assert left_behind() == []


@needs_root
def test_a_killed_owner_leaves_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        relay_pid, namespace = owner.stdout.readline().split()
        assert (NAMESPACES / namespace.decode()).exists()
        owner.kill()
    wait_until(lambda: not psutil.pid_exists(int(relay_pid)))
    assert list(NAMESPACES.glob(f"mdc-wan-{owner.pid}-*")) == []


@needs_root
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, ""), (signal.SIGINT, "KeyboardInterrupt")]
)
def test_a_dead_relay_is_an_error_and_leaves_nothing(number: signal.Signals, words: str) -> None:
    with wide_area(["a"], LINK) as area:
        os.kill(area.relay_pid, number)
        for request in (area.cut, area.restore):
            with pytest.raises(RunError, match="does not answer, exit status -") as caught:
                request("a")
            assert words in caught.value.hint
    assert left_behind() == []


@needs_root
def test_a_stale_namespace_of_this_process_is_replaced() -> None:
    with wide_area(["a"], LINK) as area:
        *head, number, index = area.coordinator.namespace.split("-")
    stale = "-".join([*head, str(int(number) + 1), index])
    subprocess.run(["ip", "netns", "add", stale], check=True)
    with wide_area(["a"], LINK) as area:
        assert area.coordinator.namespace == stale
    assert left_behind() == []


@needs_root
def test_networks_stand_side_by_side() -> None:
    with wide_area(["a"], LINK) as one, wide_area(["a"], LINK) as other:
        with one.cut_off("a"):
            assert connect_seconds(other.sites["a"], other.coordinator) < 1
        assert one.sites["a"].address == other.sites["a"].address
        assert one.counters("a").up.num_forwarded == 0


@needs_root
def test_an_unknown_site_is_named() -> None:
    with wide_area(["a"], LINK) as area, pytest.raises(RunError, match=r"cut: .*'c'.*\['a'\]"):
        area.cut("c")


def test_what_a_machine_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RunError, match=r"need root .*user 1000"), wide_area(["a"], LINK):
        pass
    monkeypatch.undo()
    if missing():
        pytest.skip(missing())
    monkeypatch.setattr(module, "TUN_DEVICE", tmp_path / "tun")
    with pytest.raises(RunError, match="no TUN devices"), wide_area(["a"], LINK):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="ip is missing"), wide_area(["a"], LINK):
        pass


@pytest.mark.parametrize("sites", [[], ["a", "a"], [f"site-{number}" for number in range(254)]])
def test_wrong_sites_are_refused(sites: list[str]) -> None:
    with pytest.raises(ConfigError, match="1 to 253 different names"), wide_area(sites, LINK):
        pass


@pytest.mark.parametrize(
    ("key", "value"),
    [("rate_bps", 0.0), ("round_trip_s", -1.0), ("loss", 1.0), ("loss", -0.1), ("queue_s", 0.0)],
)
def test_wrong_links_are_refused(key: str, value: float) -> None:
    values = {"rate_bps": 1e6, "round_trip_s": 0.1, "loss": 0.0, "queue_s": 0.1, key: value}
    with pytest.raises(ConfigError, match=rf"Link\.{key}: .*got {value}"):
        Link(**values)
