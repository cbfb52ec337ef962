"""A provisioned federation in a network with low bandwidth, long delay, loss and an outage."""

import hashlib
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from anyio.from_thread import start_blocking_portal

from mdc_flower.engines.flower_processes import free_port
from mdc_flower.engines.in_process import run_in_process
from strategies.storage.run_directory import GLOBAL_MODEL, read_events, read_history
from tests.faults.catalog import fault
from tests.faults.wide_area import Link, Pace, ProxySite, host, wide_area
from tests.integration.conftest import small_config
from tests.integration.real_sites import RealSites, real_sites

MODEL = "tests.faults.wide_lab:wide"
MODEL_BYTES = 45_000_000
CUT_S = 20.0
NAMES = ["site-0", "site-1", "site-2"]
CLOSED = ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/pull", "/docs")


def test_bytes_leave_at_the_links_rate_and_arrive_half_a_round_trip_later() -> None:
    pace = Pace(Link(rate_bps=8000.0, round_trip_s=0.5))
    # 1000 bytes per second. The second piece waits for the first; the third does not wait.
    times = [pace.times(1000, now=10.0), pace.times(2000, now=10.5), pace.times(500, now=20.0)]
    assert times == [(11.0, 11.25), (13.0, 13.25), (20.5, 20.75)]


@pytest.fixture
def ends() -> Iterator[tuple[ProxySite, socket.socket, socket.socket]]:
    """Yield a proxy, and the site's and the coordinator's sockets of a connection through it."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        portal = stack.enter_context(start_blocking_portal())
        proxy = ProxySite(portal, Link(1e9, 0.01), server.getsockname()[1], stack)
        site = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=60))
        coordinator = stack.enter_context(server.accept()[0])
        coordinator.settimeout(60)
        yield proxy, site, coordinator


def test_the_proxy_passes_bytes_unchanged_and_holds_them_back_while_the_link_is_down(
    ends: tuple[ProxySite, socket.socket, socket.socket],
) -> None:
    proxy, site, coordinator = ends
    sent = bytes(range(256)) * 2000
    proxy.cut()
    coordinator.sendall(sent[:1000])
    site.settimeout(0.2)
    with pytest.raises(TimeoutError):
        site.recv(1)
    assert proxy.received_bytes() == 0
    proxy.restore()
    site.settimeout(60)
    coordinator.sendall(sent[1000:])
    coordinator.shutdown(socket.SHUT_WR)
    assert site.makefile("rb").read() == sent
    assert proxy.received_bytes() == len(sent)
    site.sendall(b"answer")  # the other direction is still open
    assert coordinator.recv(100) == b"answer"


def test_a_reset_reaches_both_ends(ends: tuple[ProxySite, socket.socket, socket.socket]) -> None:
    proxy, site, coordinator = ends
    coordinator.sendall(b"x")
    assert site.recv(1) == b"x"
    proxy.reset()
    for end in (site, coordinator):
        with pytest.raises(ConnectionResetError):
            end.recv(1)


@pytest.mark.integration
@pytest.mark.slow
@fault(
    "a site's link down for 20 s in the middle of a transfer, in a wide-area network",
    "the transfer continues when the link is back",
)
def test_a_link_that_goes_down_in_the_middle_of_a_transfer(tmp_path: Path) -> None:
    run_dir, simulated = tmp_path / "run", tmp_path / "simulated"
    port, link = free_port(), Link(rate_bps=100e6, round_trip_s=0.05, loss=0.001)
    with (
        wide_area(NAMES, link, port) as area,
        real_sites(
            tmp_path, coordinator_data="digits", host=host(), port=port, listen="0.0.0.0"
        ) as sites,
    ):
        sites.start_coordinator()
        _only_sites_are_served(port)
        for name, site in area.items():
            _set_port(sites, name, site.port)
            sites.start_site(name, site.prefix)
        running = sites.start(
            "run", "coordinator", "run", str(sites.kit("coordinator")), "--set", f"model={MODEL}",
            "--set", "epochs=fixed", "--set", "local-epochs=1", "--set", "epoch-budget=2",
            "--set", "round-deadline-s=400.0", "--seed", "1", "--output", str(run_dir),
        )  # fmt: skip
        sites.wait(lambda: len(read_events(run_dir, "round-started")) == 2, 600, "run")
        cut = area["site-1"]
        before = cut.received_bytes()
        sites.wait(lambda: cut.received_bytes() - before > MODEL_BYTES / 4, 600, "run")
        cut.cut()
        assert cut.received_bytes() - before < MODEL_BYTES
        time.sleep(CUT_S)
        cut.restore()
        assert running.wait(600) == 0, sites.log("run")

    history = read_history(run_dir)
    assert [sorted(line["participants"]) for line in history] == [NAMES] * 2
    run_in_process(small_config(simulated, epoch_budget=2, model=MODEL), 3)
    assert _sha256(run_dir) == _sha256(simulated)


def _set_port(sites: RealSites, name: str, port: int) -> None:
    """Make a site connect through its link."""
    path = sites.kit(name) / "kit.toml"
    path.write_text(re.sub(r"(?m)^port = .*$", f"port = {port}", path.read_text()))


def _only_sites_are_served(port: int) -> None:
    """Call the APIs that start runs, at an address other than loopback; each must be refused."""
    found = [one for ones in psutil.net_if_addrs().values() for one in ones]
    ours = [one.address for one in found if one.family == socket.AF_INET]
    addresses = [address for address in ours if not address.startswith("127.")]
    context = ssl._create_unverified_context()
    for path in CLOSED if addresses else ():
        request = urllib.request.Request(f"https://{addresses[0]}:{port}{path}", data=b"")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, context=context, timeout=20)
        assert caught.value.code == 403


def _sha256(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / GLOBAL_MODEL).read_bytes()).hexdigest()
