"""A wide-area network on one machine: a coordinator and sites, each in a network namespace.

Linux can delay, drop and slow down packets itself (``tc qdisc ... netem``), but not every kernel
is built with it. Here a process of our own takes its place: it holds a TUN device of every
namespace and carries IP packets from one to another, as late and as few as the link says.

It is a process rather than a thread because packets must not wait for the interpreter lock of
whoever measures. ``python -m simulations.wide_area`` is that process, and no command for people.
"""

import errno
import fcntl
import gc
import itertools
import json
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strategies.errors import ConfigError, RunError
from strategies.seeds import derive_seed

MTU = 1500
"""Largest IP packet, in bytes."""

TUN_DEVICE = Path("/dev/net/tun")
NAMESPACES = Path("/run/netns")
"""Where ``ip netns`` keeps the names of the namespaces."""

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_CONGESTION_CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control"
_ALLOWED_CONTROLS = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_NETWORK = "10.77.0"
_MAX_SITES = 253

# From linux/if_tun.h.
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

# Packets that a device holds until the relay reads them. Far more than the default of 500, so
# that what a busy machine makes the relay miss is late rather than lost without being counted.
_DEVICE_QUEUE = 20_000

_ANSWER_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_count = itertools.count()


@dataclass(frozen=True)
class Link:
    """The access link of a site, the same in both directions.

    A packet waits until those before it are sent, takes its length over `rate_bps` to be sent,
    may be lost on the way, and arrives half of `round_trip_s` later; the relay adds up to 1 ms,
    more where no core is free for it.

    Parameters
    ----------
    rate_bps
        Bits per second, IP headers included: at most 1448/1500 of it is payload of TCP.
    round_trip_s
        Seconds there and back between the site and the coordinator, with an empty queue.
    loss
        Probability that a packet is lost, in [0, 1); independent of the others.
    queue_s
        Longest wait to be sent, in seconds; a packet that would wait longer is dropped. By
        default the 250 ms that buffers of routers were long sized by (Appenzeller, Keslassy and
        McKeown, "Sizing Router Buffers", SIGCOMM 2004, section 1).

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    rate_bps: float
    round_trip_s: float
    loss: float = 0.0
    queue_s: float = 0.25

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        _check("rate_bps", self.rate_bps, self.rate_bps > 0, "more than 0")
        _check("round_trip_s", self.round_trip_s, self.round_trip_s >= 0, "0 or more")
        _check("loss", self.loss, 0 <= self.loss < 1, "0 or more, and less than 1")
        _check("queue_s", self.queue_s, self.queue_s > 0, "more than 0")


def _check(key: str, value: float, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ConfigError("out of range", where=f"Link.{key}", got=value, expected=expected)


@dataclass(frozen=True)
class Party:
    """The coordinator or a site: a network namespace, and the address that it has there."""

    namespace: str
    address: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs ``words`` in the namespace; without words, its prefix."""
        return ["ip", "netns", "exec", self.namespace, *words]


@dataclass(frozen=True)
class Traffic:
    """What came of the packets of one direction of an access link; the rest is on its way.

    Parameters
    ----------
    num_forwarded, forwarded_bytes
        Those that arrived; bytes count IP headers.
    num_lost
        Those lost at random.
    num_overflowed
        Those that found the queue full.
    num_cut
        Those that were on their way when the link was cut, or came while it was.
    """

    num_forwarded: int
    forwarded_bytes: int
    num_lost: int
    num_overflowed: int
    num_cut: int


@dataclass(frozen=True)
class Counters:
    """Both directions of a site's access link: ``up`` leads away from the site."""

    up: Traffic
    down: Traffic


class WideArea:
    """A network that runs; its methods may be called from any thread.

    The sites reach each other too: through the link of the one, then that of the other. If the
    relay dies, no packet moves any more, and every request raises a `RunError` with its last words.
    """

    def __init__(
        self,
        coordinator: Party,
        sites: Mapping[str, Party],
        relay: "subprocess.Popen[bytes]",
        control: socket.socket,
    ) -> None:
        self.coordinator = coordinator
        self.sites = dict(sites)
        self.relay_pid = relay.pid
        self._relay = relay
        self._control = control
        self._one_at_a_time = threading.Lock()

    @property
    def congestion_control(self) -> str:
        """The congestion control of TCP in the namespaces, such as ``"cubic"``."""
        return _run(self.coordinator.command("cat", _CONGESTION_CONTROL)).strip()

    def cut(self, site: str) -> None:
        """Drop every packet from and to the site, those under way included."""
        self._ask("cut", site)

    def restore(self, site: str) -> None:
        """Carry the site's packets again."""
        self._ask("restore", site)

    @contextmanager
    def cut_off(self, site: str) -> Iterator[None]:
        """Cut the site's link during the block."""
        self.cut(site)
        try:
            yield
        finally:
            self.restore(site)

    def counters(self, site: str) -> Counters:
        """Return what the site's link has carried and dropped so far."""
        up, down = self._ask("counters", site)
        return Counters(Traffic(*up), Traffic(*down))

    def _ask(self, request: str, site: str) -> Any:
        if site not in self.sites:
            raise RunError("no such site", where=request, got=site, expected=str([*self.sites]))
        with self._one_at_a_time:
            try:
                self._control.send(json.dumps([request, site]).encode())
                answer = self._control.recv(65536)
            except OSError as error:
                raise self._dead() from error
        if not answer:
            raise self._dead()
        return json.loads(answer)

    def _dead(self) -> RunError:
        # Killed first, because one that only hangs would never end what it says.
        self._relay.kill()
        # With a timeout, this may be asked for again.
        last_words = self._relay.communicate(timeout=_STOP_TIMEOUT_S)[1].decode(errors="replace")
        return RunError(
            f"the relay does not answer, exit status {self._relay.returncode}",
            where="wide area",
            hint=last_words.strip(),
        )


@contextmanager
def wide_area(
    sites: Sequence[str], link: Link, seed: int = 1, congestion_control: str | None = None
) -> Iterator[WideArea]:
    """Build a network of a coordinator and sites; remove all of it after the block.

    The namespaces and the relay have names of this process, so that several networks can stand
    side by side. Processes that were started in a namespace are the caller's to stop. If this
    process is killed, the relay removes the namespaces and ends.

    Parameters
    ----------
    sites
        Names of the sites, 1 to 253 and no two alike.
    link
        The access link of each. The coordinator's own has neither limit nor delay.
    seed
        Of the losses: which packets are lost, by their number on the link.
    congestion_control
        Of TCP in the namespaces; by default what this machine uses.

    Raises
    ------
    RunError
        If this machine cannot do that, see `check_machine`; if a command of the set-up fails; if
        the congestion control is not among those that a namespace may choose.
    ConfigError
        If there are no sites, too many of them, or two with one name.
    """
    if len(set(sites)) != len(sites) or not 1 <= len(sites) <= _MAX_SITES:
        expected = f"1 to {_MAX_SITES} different names"
        raise ConfigError("not usable", where="sites", got=[*sites], expected=expected)
    check_machine()
    _check_congestion_control(congestion_control)
    number = next(_count)
    parties = [
        Party(f"mdc-wan-{os.getpid()}-{number}-{index}", f"{_NETWORK}.{index + 1}")
        for index in range(1 + len(sites))
    ]
    with ExitStack() as stack:
        devices = [stack.enter_context(_namespace(party)) for party in parties]
        if congestion_control is not None:
            for party in parties:
                choice = f"echo {congestion_control} > {_CONGESTION_CONTROL}"
                _run(party.command("sh", "-c", choice))
        plan = {"parties": [asdict(party) for party in parties], "devices": devices}
        plan |= {"sites": [*sites], "link": asdict(link), "seed": seed}
        relay, control = stack.enter_context(_relay_process(plan))
        area = WideArea(parties[0], dict(zip(sites, parties[1:], strict=True)), relay, control)
        area.counters(sites[0])  # answered once the relay carries packets
        yield area


def check_machine() -> None:
    """Find out whether this process may build a network here.

    Raises
    ------
    RunError
        If it is not root or lacks a capability of it, or ``ip`` or ``/dev/net/tun`` is missing.
    """
    where = "wide area"
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    lacking = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if os.geteuid() != 0 or lacking:
        got = f"user {os.geteuid()} without {lacking}"
        raise RunError("namespaces and devices need root", where=where, got=got)
    if shutil.which("ip") is None:
        raise RunError("the command ip is missing", where=where, hint="Install iproute2")
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR))
    except OSError as error:
        hint = "A container needs --device /dev/net/tun"
        raise RunError(f"no TUN devices: {error}", where=where, hint=hint) from error


def _check_congestion_control(name: str | None) -> None:
    allowed = _ALLOWED_CONTROLS.read_text().split()
    if name is not None and name not in allowed:
        raise RunError(
            "a namespace may not choose that",
            where="congestion control",
            got=name,
            expected=f"one of {allowed}",
            hint=f"Write the names that it may choose to {_ALLOWED_CONTROLS}",
        )


@contextmanager
def _namespace(party: Party) -> Iterator[int]:
    """Make a party's namespace; return the descriptor of the device that leads out of it."""
    # The name has our process id: whoever left one of that name behind is dead.
    _delete_namespace(party.namespace)
    device, name = _open_device()
    try:
        _run(["ip", "netns", "add", party.namespace])
        _run(["ip", "link", "set", name, "netns", party.namespace, "name", "wan"])
        inside = ["ip", "-n", party.namespace]
        settings = ["mtu", str(MTU), "txqueuelen", str(_DEVICE_QUEUE)]
        _run([*inside, "link", "set", "wan", *settings, "up"])
        _run([*inside, "addr", "add", f"{party.address}/24", "dev", "wan"])
        _run([*inside, "link", "set", "lo", "up"])
        yield device
    finally:
        os.close(device)
        _delete_namespace(party.namespace)


def _open_device() -> tuple[int, str]:
    """Make a TUN device, which lives as long as a descriptor of it; return that and its name."""
    device = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", b"mdc%d", _IFF_TUN | _IFF_NO_PI)
        name = fcntl.ioctl(device, _TUNSETIFF, request)[:16].rstrip(b"\0").decode()
    except OSError as error:
        os.close(device)
        raise RunError(f"cannot make a TUN device: {error}", where=str(TUN_DEVICE)) from error
    return device, name


def _delete_namespace(name: str) -> None:
    if (NAMESPACES / name).exists():
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = done.stderr.strip()
        raise RunError("a command has failed", where=" ".join(command), hint=hint)
    return done.stdout


@contextmanager
def _relay_process(
    plan: Mapping[str, Any],
) -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket]]:
    """Run the relay during the block; return it, and the socket that it takes requests from."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(_ANSWER_TIMEOUT_S)
        control = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps({**plan, "control": control})],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[*plan["devices"], control],
            # An interrupt from the keyboard is for us; the relay ends when we do.
            start_new_session=True,
        )
        theirs.close()
        try:
            yield process, ours
        finally:
            _stop(process, ours)


def _stop(process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
    # Shut down rather than closed: a fork of this process may hold the socket too.
    with suppress(OSError):  # it has ended by itself
        control.shutdown(socket.SHUT_RDWR)
    try:
        process.communicate(timeout=_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


# From here on: what runs in the relay. Every packet passes through it several times, so that it
# trades some elegance for few calls and few objects a packet.

_TICK_S = 0.0005
"""Shortest time between two looks at the devices: packets of a tick are handled together."""

_BATCH = 256
"""Packets that are read from one device before the next has its turn."""

_Handler = Callable[[bytes, float], None]
"""What is done with a packet at a time of the monotonic clock, in seconds."""


class _Pipe:
    """One direction of an access link: a queue, a rate, a delay and losses."""

    def __init__(self, link: Link, seed: int, forward: _Handler) -> None:
        self.is_cut = False
        self.waiting: deque[tuple[float, bytes]] = deque()
        """Packets under way with the times at which they arrive, which never go down."""
        self._forward = forward
        self._seconds_per_byte = 8 / link.rate_bps
        self._delay_s = link.round_trip_s / 2
        self._queue_s = link.queue_s
        self._loss = link.loss
        self._random = random.Random(seed).random
        self._free_at = 0.0
        self._num_forwarded = self._forwarded_bytes = 0
        self._num_lost = self._num_overflowed = self._num_cut = 0

    def enter(self, packet: bytes, now: float) -> None:
        """Take a packet: work out at once when it arrives, if it does."""
        if self.is_cut:
            self._num_cut += 1
            return
        start = max(self._free_at, now)
        if start - now > self._queue_s:
            self._num_overflowed += 1
            return
        self._free_at = sent = start + len(packet) * self._seconds_per_byte
        if self._loss and self._random() < self._loss:
            self._num_lost += 1
            return
        self.waiting.append((sent + self._delay_s, packet))

    def leave(self, now: float) -> None:
        """Hand on the packets that have arrived by now."""
        waiting = self.waiting
        while waiting and waiting[0][0] <= now:
            packet = waiting.popleft()[1]
            self._num_forwarded += 1
            self._forwarded_bytes += len(packet)
            self._forward(packet, now)

    def cut(self) -> None:
        """Drop what is under way, and what comes until ``is_cut`` is taken back."""
        self.is_cut = True
        self._num_cut += len(self.waiting)
        self.waiting.clear()
        self._free_at = 0.0

    def counts(self) -> list[int]:
        """Return the fields of a `Traffic`, in their order."""
        dropped = [self._num_lost, self._num_overflowed, self._num_cut]
        return [self._num_forwarded, self._forwarded_bytes, *dropped]


class _Relay:
    """Carries packets between the devices, from site to coordinator to site."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        link, seed = Link(**plan["link"]), plan["seed"]
        self._control = socket.socket(fileno=plan["control"])
        self._links: dict[str, tuple[_Pipe, _Pipe]] = {}
        self._from_device: dict[int, _Handler] = {}
        self._to_address: dict[bytes, _Handler] = {}
        names = [None, *plan["sites"]]
        for name, party, device in zip(names, plan["parties"], plan["devices"], strict=True):
            address = socket.inet_aton(party["address"])
            if name is None:
                self._from_device[device] = self._route
                self._to_address[address] = _writer(device)
                continue
            up = _Pipe(link, derive_seed(seed, name, "up"), self._route)
            down = _Pipe(link, derive_seed(seed, name, "down"), _writer(device))
            self._links[name] = up, down
            self._from_device[device] = up.enter
            self._to_address[address] = down.enter
        self._pipes = [pipe for pair in self._links.values() for pipe in pair]

    def run(self) -> None:
        """Carry packets until the other end of the control socket is closed."""
        poll = select.epoll()
        for descriptor in (self._control.fileno(), *self._from_device):
            poll.register(descriptor, select.EPOLLIN)
        while True:
            for descriptor, _ in poll.poll(self._idle_s()):
                if descriptor in self._from_device:
                    self._read(descriptor)
                elif not self._answer():
                    return
            now = time.monotonic()
            for pipe in self._pipes:
                pipe.leave(now)
            time.sleep(_TICK_S)

    def _idle_s(self) -> float | None:
        """Return how long to wait for packets, in whole milliseconds, which epoll rounds up to."""
        due = min((pipe.waiting[0][0] for pipe in self._pipes if pipe.waiting), default=None)
        if due is None:
            return None
        return max(0, int(1000 * (due - time.monotonic()))) / 1000

    def _read(self, device: int) -> None:
        handle, now = self._from_device[device], time.monotonic()
        try:
            for _ in range(_BATCH):
                packet = os.read(device, MTU)
                # Anything else is the kernel's search for routers, which takes no part: what is
                # lost shall follow from the seed.
                if packet[16:20] in self._to_address:
                    handle(packet, now)
        except BlockingIOError:
            return

    def _route(self, packet: bytes, now: float) -> None:
        """Hand a packet to whom its IPv4 header names."""
        self._to_address[packet[16:20]](packet, now)

    def _answer(self) -> bool:
        """Do as the next request says; return False if there will be none any more."""
        message = self._control.recv(65536)
        if not message:
            return False
        request, site = json.loads(message)
        answer = None
        for pipe in self._links[site]:
            if request == "cut":
                pipe.cut()
            elif request == "restore":
                pipe.is_cut = False
        if request == "counters":
            answer = [pipe.counts() for pipe in self._links[site]]
        self._control.send(json.dumps(answer).encode())
        return True


def _writer(device: int) -> _Handler:
    def write(packet: bytes, now: float) -> None:
        try:
            os.write(device, packet)
        except OSError as error:
            # Someone took the device down in the namespace: what comes is lost, as in hardware.
            if error.errno != errno.EIO:
                raise

    return write


def _main(plan: Mapping[str, Any]) -> None:
    """Be the relay; take the namespaces away at the end, for a parent that was killed."""
    gc.disable()  # nothing here is cyclic, and a collection is a pause
    try:
        _Relay(plan).run()
    finally:
        for party in plan["parties"]:
            _delete_namespace(party["namespace"])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
