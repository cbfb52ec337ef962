"""A real SuperLink and real SuperNodes are killed, restarted and disconnected."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from strategies.storage.run_directory import read_events, read_history
from tests.faults.catalog import fault
from tests.faults.federation import federation, kill
from tests.faults.injector import Fault
from tests.faults.runs import NUM_SITES, config_in, resumed, sha256, wait_until
from tests.integration.conftest import summary_of

pytestmark = pytest.mark.slow

COMPLETED = "finished:completed"
ALL = ["site-0", "site-1", "site-2"]


@fault(
    "SuperLink killed, then restarted with the same `--database`",
    "Flower ends the run; submitted again with `resume`, it continues inside the open round",
)
@fault(
    "SuperNode killed while it trains, then restarted",
    "the site is asked again as soon as it is back, even under a new node id",
)
def test_a_killed_supernode_and_then_a_killed_superlink(tmp_path: Path, undisturbed: str) -> None:
    run_dir = tmp_path / "run"
    config = config_in(run_dir, round_deadline_s=180.0)
    # In both rounds one site is slow, so that the others have sent their updates.
    hangs = Fault("training", "hang", {"round": 2, "site": "site-1"})
    slow = Fault("training", "hang", {"round": 3, "site": "site-1"}, seconds=15.0)
    with federation(tmp_path, faults=[hangs, slow]) as flower:
        link, sites = flower.start_all()
        flower.submit(config)
        wait_until(lambda: len(updates_in(run_dir, 2)) == 2, 300)
        kill(sites[1])
        flower.start_site(1)
        wait_until(lambda: len(updates_in(run_dir, 3)) == 2, 300)
        link.kill()
        link.wait()
        flower.start_superlink()
        assert flower.wait_for_end() == "finished:failed"
        flower.submit(resumed(config))
        assert flower.wait_for_end() == COMPLETED

    assert sha256(run_dir) == undisturbed
    lines = read_history(run_dir)
    assert lines[1]["asked_again"] == ["site-1"]
    assert all(sorted(line["participants"]) == ALL for line in lines)
    again = read_events(run_dir, "round-started")[-1]
    assert (again["sites"], again["kept"]) == (["site-1"], ["site-0", "site-2"])


@fault(
    "SuperNode killed for good",
    "the others continue if there is a quorum; every round names the missing site, and no round "
    "waits longer than its deadline",
    "all later updates of that site",
)
def test_a_killed_supernode_that_stays_away(tmp_path: Path) -> None:
    deadline_s = 60.0
    config = config_in(
        tmp_path / "run", round_deadline_s=deadline_s, min_sites=2, wait_for_sites_s=30.0
    )
    training = Fault("training", "hang", {"round": 2, "site": "site-1"})
    with federation(tmp_path, faults=[training]) as flower:
        _, sites = flower.start_all()
        flower.submit(config)
        wait_until(lambda: len(updates_in(tmp_path / "run", 2)) == 2, 300)
        kill(sites[1])
        assert flower.wait_for_end() == COMPLETED

    first, *others = read_history(tmp_path / "run")
    assert sorted(first["participants"]) == ALL
    assert len(others) == 2
    for line in others:
        assert sorted(line["participants"]) == ["site-0", "site-2"]
        assert "site-1" in [*line["dropped"], *line["missing"]]
        # A round can wait twice, before it sends the requests and after; each wait has a limit.
        assert line["seconds"] < 2 * deadline_s
    assert summary_of(tmp_path / "run")["exit-status"] == 0


@pytest.fixture
def cut_off(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Yield a network namespace, and the address of this host inside it."""
    name, here, there = "mdc-faults", "10.231.77.1", "10.231.77.2"
    commands = [
        f"ip netns add {name}",
        f"ip link add mdc-here type veth peer name mdc-there netns {name}",
        f"ip addr add {here}/24 dev mdc-here",
        "ip link set mdc-here up",
        f"ip netns exec {name} ip addr add {there}/24 dev mdc-there",
        f"ip netns exec {name} ip link set mdc-there up",
        f"ip netns exec {name} ip link set lo up",
    ]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"network namespaces need root: {command}: {done.stderr.strip()}")
        yield name, here
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", "mdc-here"], capture_output=True, check=False)


@fault(
    "network down for 30 s between a SuperNode and the SuperLink",
    "both continue by themselves when it is back",
)
def test_a_network_that_is_down_for_a_while(
    tmp_path: Path, undisturbed: str, cut_off: tuple[str, str]
) -> None:
    namespace, address = cut_off
    config = config_in(tmp_path / "run", round_deadline_s=180.0)
    with federation(tmp_path, host=address) as flower:
        flower.start_superlink()
        for number in range(NUM_SITES):
            inside = ["ip", "netns", "exec", namespace] if number == 1 else []
            flower.start_site(number, inside)
        flower.submit(config)
        wait_until(lambda: len(read_history(tmp_path / "run")) == 1, 300)
        subprocess.run(["ip", "link", "set", "mdc-here", "down"], check=True)
        time.sleep(30)
        subprocess.run(["ip", "link", "set", "mdc-here", "up"], check=True)
        assert flower.wait_for_end() == COMPLETED

    assert sha256(tmp_path / "run") == undisturbed
    assert all(sorted(line["participants"]) == ALL for line in read_history(tmp_path / "run"))


def updates_in(run_dir: Path, round_number: int) -> list[str]:
    """Return the sites whose updates were accepted in a round."""
    answered = read_events(run_dir, "site-answered")
    return [e["site"] for e in answered if e["round"] == round_number and not e["dropped"]]
