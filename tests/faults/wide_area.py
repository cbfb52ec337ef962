"""A wide-area network simulated on one machine: slow links to the sites that can be cut.

As root on a kernel with netem, each site is a network namespace, and the kernel delays, drops and
slows down its packets. Otherwise each site reaches the coordinator through a TCP proxy. The proxy
loses no packets, so `Link.loss` has no effect; a connection made while the link is cut waits
instead of failing; and every caller has an address of this machine.
"""

import os
import shutil
import socket
import struct
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal

from mdc_flower.engines.flower_processes import LOOPBACK

QUEUE_S = 0.05
"""How far ahead of the link the proxy reads, in seconds."""

IN_FLIGHT = 256
"""Maximum number of pieces that the proxy has read and not yet delivered, per direction."""

NETWORK = "10.77.0"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Link:
    """Rate in bits per second, round-trip time in seconds, and share of lost packets in [0, 1]."""

    rate_bps: float
    round_trip_s: float
    loss: float = 0.0


class FarSite(ABC):
    """A site behind a link.

    Attributes
    ----------
    host, port : str, int
        Address at which the site reaches the coordinator.
    prefix : list of str
        Words to put before a command to run it at the site.
    """

    host: str
    port: int
    prefix: list[str]

    @abstractmethod
    def received_bytes(self) -> int:
        """Return the number of bytes that have arrived at the site."""

    @abstractmethod
    def cut(self) -> None:
        """Stop all traffic in both directions."""

    @abstractmethod
    def restore(self) -> None:
        """Restore the traffic."""

    @abstractmethod
    def reset(self) -> None:
        """Reset the site's connections."""


@contextmanager
def wide_area(names: Sequence[str], link: Link, port: int) -> Iterator[dict[str, FarSite]]:
    """Yield a link per site to the server that listens on a port at all local addresses."""
    with ExitStack() as stack:
        if has_netem():
            yield {
                name: NamespaceSite(number, link, port, stack)
                for number, name in enumerate(names, 2)
            }
        else:
            portal = stack.enter_context(start_blocking_portal())
            yield {name: ProxySite(portal, link, port, stack) for name in names}


def host() -> str:
    """Return the host name or address at which every site reaches the coordinator."""
    return NamespaceSite.host if has_netem() else ProxySite.host


def has_netem() -> bool:
    """Return whether this process may create network namespaces, and the kernel has netem."""
    trial = "unshare --net tc qdisc add dev lo root netem delay 1ms"
    if not all(map(shutil.which, ("unshare", "tc", "ip"))):
        return False
    return subprocess.run(trial.split(), capture_output=True, check=False).returncode == 0


class NamespaceSite(FarSite):
    """A site in a network namespace, behind a pair of devices that netem shapes."""

    host = f"{NETWORK}.1"

    def __init__(self, number: int, link: Link, port: int, stack: ExitStack) -> None:
        self.port, self._link = port, link
        self._name = name = f"mdc{os.getpid()}-{number}"
        self.prefix = ["ip", "netns", "exec", name]
        address = f"{NETWORK}.{number}"
        _run(f"ip netns add {name}")
        stack.callback(_run, f"ip netns delete {name}")  # this deletes both devices, too
        _run(f"ip link add {name} type veth peer name wan netns {name}")
        _run(f"ip address add {self.host} peer {address} dev {name}")
        _run(f"ip -n {name} address add {address} peer {self.host} dev wan")
        self.restore()
        for device in (f"link set {name}", f"-n {name} link set wan", f"-n {name} link set lo"):
            _run(f"ip {device} up")

    def received_bytes(self) -> int:
        # Bytes that leave this end arrive at the other end at once.
        return int(Path(f"/sys/class/net/{self._name}/statistics/tx_bytes").read_text())

    def cut(self) -> None:
        self._shape(loss=1.0)

    def restore(self) -> None:
        self._shape(self._link.loss)

    def reset(self) -> None:
        _run(f"ip netns exec {self._name} ss --kill dst {self.host}")

    def _shape(self, loss: float) -> None:
        delay_us = 1e6 * self._link.round_trip_s / 2
        shape = f"rate {self._link.rate_bps:.0f}bit delay {delay_us:.0f}us loss {100 * loss:g}%"
        for device in (f"qdisc replace dev {self._name}", f"-n {self._name} qdisc replace dev wan"):
            _run(f"tc {device} root netem {shape}")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)


class Pace:
    """The timing of one direction of a link: when bytes are sent, and when they arrive."""

    def __init__(self, link: Link) -> None:
        self._link, self._free_at = link, 0.0

    def times(self, num_bytes: int, now: float) -> tuple[float, float]:
        """Add the next bytes; return the times at which the last of them is sent and arrives."""
        self._free_at = max(self._free_at, now) + 8 * num_bytes / self._link.rate_bps
        return self._free_at, self._free_at + self._link.round_trip_s / 2


class ProxySite(FarSite):
    """A site behind a port of this machine, from which a proxy passes bytes on and back."""

    host = "localhost"

    def __init__(self, portal: BlockingPortal, link: Link, port: int, stack: ExitStack) -> None:
        self.prefix = []
        self._portal, self._link, self._to_port = portal, link, port
        self._up, self._down = Pace(link), Pace(link)
        self._received_bytes = 0
        self._streams: set[SocketStream] = set()
        self._whole = anyio.Event()
        self._whole.set()
        serving, self.port = portal.start_task(self._serve)
        stack.callback(serving.cancel)

    def received_bytes(self) -> int:
        return self._received_bytes

    def cut(self) -> None:
        self._whole = anyio.Event()

    def restore(self) -> None:
        self._portal.call(self._whole.set)

    def reset(self) -> None:
        self._portal.call(self._reset)

    async def _reset(self) -> None:
        for stream in [*self._streams]:
            one = stream.extra(SocketAttribute.raw_socket)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            await anyio.aclose_forcefully(stream)

    async def _serve(self, *, task_status: TaskStatus[int]) -> None:
        async with await anyio.create_tcp_listener(local_host=LOOPBACK) as listener:
            task_status.started(listener.extra(SocketAttribute.local_port))
            await listener.serve(self._connect)

    async def _connect(self, site: SocketStream) -> None:
        ends = {site}
        try:
            await anyio.sleep(self._link.round_trip_s)  # the duration of a handshake
            async with site, await anyio.connect_tcp(LOOPBACK, self._to_port) as coordinator:
                ends.add(coordinator)
                self._streams |= ends
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._carry, site, coordinator, self._up)
                    tasks.start_soon(self._carry, coordinator, site, self._down)
        except* (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # when one end closes, the other is closed, too
        finally:
            self._streams -= ends

    async def _carry(self, source: SocketStream, target: SocketStream, pace: Pace) -> None:
        enter, leave = anyio.create_memory_object_stream[tuple[float, bytes]](IN_FLIGHT)

        async def deliver() -> None:
            async with leave:
                async for arrives, data in leave:
                    await anyio.sleep_until(arrives)
                    await self._whole.wait()
                    await target.send(data)
                    self._received_bytes += len(data) if pace is self._down else 0
            await target.send_eof()

        async with anyio.create_task_group() as tasks, enter:
            tasks.start_soon(deliver)
            async for data in source:
                await self._whole.wait()
                sent, arrives = pace.times(len(data), anyio.current_time())
                await anyio.sleep_until(sent - QUEUE_S)
                await enter.send((arrives, data))
