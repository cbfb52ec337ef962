"""A federation from its kits, across a network that is slow, far, lossy, and cut for a while."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdc_flower.engines import run_in_process
from simulations.wide_area import Link, WideArea, check_machine, wide_area
from strategies.errors import RunError
from strategies.journal.run_directory import GLOBAL_MODEL, read_events, read_history
from tests.faults.catalog import fault
from tests.integration.conftest import small_config
from tests.integration.real_sites import real_sites

MODEL = "tests.faults.wide_lab:wide"
MODEL_BYTES = 45_000_000
CUT_S = 20.0
NAMES = ["site-0", "site-1", "site-2"]

pytestmark = pytest.mark.slow

OUTSIDER = """
import ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/pull", "/docs"):
    request = urllib.request.Request(f"https://{sys.argv[1]}{path}", data=b"")
    try:
        urllib.request.urlopen(request, context=context, timeout=20)
    except urllib.error.HTTPError as error:
        print(path, error.code)
"""


@pytest.fixture
def area() -> Iterator[WideArea]:
    """Yield a coordinator and three sites behind 100 Mbit/s, 50 ms round trip, 0.1% loss."""
    try:
        check_machine()
    except RunError as error:
        pytest.skip(str(error))
    with wide_area(NAMES, Link(100e6, 0.05, 0.001)) as built:
        yield built


@fault(
    "a site's link cut for 20 s in the middle of a transfer, in a wide-area network",
    "the transfer goes on when the link is back",
)
def test_a_link_that_is_cut_in_the_middle_of_a_transfer(tmp_path: Path, area: WideArea) -> None:
    run_dir, simulated = tmp_path / "run", tmp_path / "simulated"
    here = area.coordinator.command()
    host = area.coordinator.address
    with real_sites(tmp_path, coordinator_data="digits", host=host, listen=host) as sites:
        sites.start_coordinator(here)
        _only_sites_are_served(sites.kit("site-0") / "ca.pem", area, sites.address)
        for name in NAMES:
            sites.start_site(name, area.sites[name].command())
        running = sites.start(
            "run", "coordinator", "run", str(sites.kit("coordinator")), "--set", f"model={MODEL}",
            "--set", "epochs=fixed", "--set", "local-epochs=1", "--set", "epoch-budget=2",
            "--set", "round-deadline-s=400.0", "--seed", "1", "--output", str(run_dir),
            prefix=here,
        )  # fmt: skip
        sites.wait(lambda: len(read_events(run_dir, "round-started")) == 2, 240, "run")
        before = area.counters("site-1").down.forwarded_bytes
        sites.wait(
            lambda: area.counters("site-1").down.forwarded_bytes - before > MODEL_BYTES / 4,
            120,
            "run",
        )
        assert area.counters("site-1").down.forwarded_bytes - before < MODEL_BYTES
        with area.cut_off("site-1"):
            time.sleep(CUT_S)
        assert running.wait(400) == 0, sites.log("run")

    history = read_history(run_dir)
    assert [sorted(line["participants"]) for line in history] == [NAMES] * 2
    run_in_process(small_config(simulated, epoch_budget=2, model=MODEL), 3)
    assert _sha256(run_dir) == _sha256(simulated)


def _only_sites_are_served(ca: Path, area: WideArea, address: str) -> None:
    """Ask, from a site's machine, for what would start a run."""
    command = area.sites["site-0"].command(sys.executable, "-c", OUTSIDER, address, str(ca))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["403"] * 4


def _sha256(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / GLOBAL_MODEL).read_bytes()).hexdigest()
