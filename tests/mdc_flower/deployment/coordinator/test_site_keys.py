"""The register of keys, and what is left of it when it is stopped at any point."""

import json
from pathlib import Path

import pytest

from mdc_flower.coordinator.admission import read_register
from mdc_flower.deployment.coordinator import site_keys as registry
from mdc_flower.deployment.coordinator.site_keys import (
    Changes,
    Node,
    nodes,
    register_path,
    synchronize,
)
from mdc_flower.deployment.kits.kits import CoordinatorKit, read_coordinator_kit
from mdc_flower.deployment.site.state_folder import open_state
from strategies.common.errors import RunError
from strategies.common.files import write_atomically
from tests.mdc_flower.deployment.federations import Federation, public_key
from tests.mdc_flower.deployment.flower import FakeSuperLink

HOME = Path("/nowhere")


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> FakeSuperLink:
    link = FakeSuperLink()
    monkeypatch.setattr(registry, "flwr", link)
    return link


@pytest.fixture
def kit(federation: Federation) -> CoordinatorKit:
    kit = read_coordinator_kit(federation.kits / "coordinator")
    open_state(kit)
    return kit


def synchronized(kit: CoordinatorKit) -> Changes:
    return synchronize(kit, kit.sites, HOME)


def assert_sound(kit: CoordinatorKit, link: FakeSuperLink) -> None:
    """Every site's own key counts, under its name, and no other."""
    register = read_register(register_path(kit))
    assert {name: link.keys[node] for name, node in register.items()} == kit.sites
    assert sorted(register.values()) == sorted(link.keys)
    registered = sorted((kit.state / "registered").glob("*.pub"))
    assert {path.stem: path.read_text() for path in registered} == kit.sites


def test_every_site_is_registered_once(kit: CoordinatorKit, link: FakeSuperLink) -> None:
    done = ["berlin: registered", "lisbon: registered"]
    assert synchronized(kit) == Changes(done, {})
    assert_sound(kit, link)
    before = register_path(kit).read_text()
    assert json.loads(before) == {"berlin": "101", "lisbon": "102"}
    assert synchronized(kit) == Changes([], {})
    assert register_path(kit).read_text() == before


def test_a_site_that_leaves_and_a_node_that_nobody_knows_count_no_more(
    kit: CoordinatorKit, link: FakeSuperLink
) -> None:
    synchronized(kit)
    (kit.folder / "sites" / "lisbon.pub").unlink()
    link.nodes[7] = {"status": "online", "online-at": "", "offline-at": "", "key": "ecdsa-foreign"}
    done = ["node 7: its key is no longer accepted", "lisbon: its key is no longer accepted"]
    assert synchronized(kit).done == done
    assert_sound(kit, link)


def test_a_new_key_takes_the_place_of_the_old_one(
    federation: Federation, kit: CoordinatorKit, link: FakeSuperLink
) -> None:
    synchronized(kit)
    federation.provision(renew=["berlin"])
    assert synchronized(kit).done == ["berlin: its key is no longer accepted", "berlin: registered"]
    assert_sound(kit, link)


def test_sites_that_exchange_their_keys_or_are_renamed(
    federation: Federation, kit: CoordinatorKit, link: FakeSuperLink
) -> None:
    synchronized(kit)
    folder = kit.folder / "sites"
    berlin, lisbon = public_key(federation, "berlin"), public_key(federation, "lisbon")
    (folder / "berlin.pub").write_text(lisbon)
    (folder / "lisbon.pub").write_text(berlin)
    synchronized(kit)
    assert_sound(kit, link)
    # Names with dots, one of which looks like a file of a key.
    (folder / "berlin.pub").rename(folder / "berlin.2.pub")
    (folder / "lisbon.pub").rename(folder / "lisbon.pub.pub")
    synchronized(kit)
    assert sorted(read_register(register_path(kit))) == ["berlin.2", "lisbon.pub"]
    assert_sound(kit, link)


@pytest.mark.parametrize("bad", ["", "ecds", "no key at all"])
def test_a_key_that_is_refused_keeps_nobody_else_out(
    kit: CoordinatorKit, link: FakeSuperLink, bad: str
) -> None:
    path = kit.folder / "sites" / "aachen.pub"  # before the others
    path.write_text(bad)
    told = synchronized(kit)
    assert told.done == ["berlin: registered", "lisbon: registered"]
    assert told.refused.keys() == {"aachen"}
    assert told.refused["aachen"].startswith("aachen: its key could not be registered: ")
    assert sorted(read_register(register_path(kit))) == ["berlin", "lisbon"]
    path.write_text("ecdsa-sha2-nistp384 AAAA aachen\n")
    assert synchronized(kit) == Changes(["aachen: registered"], {})
    assert_sound(kit, link)


def test_one_key_under_two_names_counts_under_one(
    federation: Federation, kit: CoordinatorKit, link: FakeSuperLink
) -> None:
    (kit.folder / "sites" / "zoo.pub").write_text(public_key(federation, "berlin"))
    assert synchronized(kit).refused.keys() == {"zoo"}
    assert sorted(read_register(register_path(kit))) == ["berlin", "lisbon"]


@pytest.mark.parametrize("stop", range(1, 12))
def test_stopped_at_any_write_or_call_it_goes_on_with_the_next_one(
    federation: Federation,
    kit: CoordinatorKit,
    link: FakeSuperLink,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    synchronized(kit)
    federation.provision(renew=["berlin", "lisbon"])
    left = stop

    class Killed(BaseException):
        pass

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    def call(home: Path, *arguments: str) -> dict[str, object]:
        answer = link(home, *arguments)
        count()  # done there, and never heard of here
        return answer

    def write(path: Path, content: bytes) -> None:
        count()
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "flwr", call)
        patch.setattr(registry, "write_atomically", write)
        try:
            synchronized(kit)
        except Killed:
            pass
        else:
            assert stop > 9, "there are that many steps"
    # Meanwhile nobody speaks for another: a name's node has that name's key, old or new.
    for name, node in read_register(register_path(kit)).items():
        assert link.keys.get(node, kit.sites[name]).split()[2:] == kit.sites[name].split()[2:]
    synchronized(kit)
    assert_sound(kit, link)


@pytest.mark.parametrize("fail_at", ["list", "unregister"])
def test_a_superlink_that_does_not_answer_is_told_and_nothing_forgotten(
    federation: Federation, kit: CoordinatorKit, link: FakeSuperLink, fail_at: str
) -> None:
    synchronized(kit)
    before = register_path(kit).read_text()
    federation.provision(renew=["berlin"])
    link.fail_at = fail_at
    with pytest.raises(RunError, match="does not answer"):
        synchronized(kit)
    assert register_path(kit).read_text() == before
    link.fail_at = None
    synchronized(kit)
    assert_sound(kit, link)


@pytest.mark.parametrize("lost", ["database", "register", "keys"])
def test_what_is_restored_from_different_times_is_put_right(
    kit: CoordinatorKit, link: FakeSuperLink, lost: str
) -> None:
    synchronized(kit)
    if lost == "database":
        link.nodes.clear()
    elif lost == "register":
        register_path(kit).unlink()
    else:
        for path in (kit.state / "registered").iterdir():
            path.unlink()
    synchronized(kit)
    assert_sound(kit, link)


def test_an_older_database_with_a_key_that_was_renewed(
    federation: Federation, kit: CoordinatorKit, link: FakeSuperLink
) -> None:
    synchronized(kit)
    older = {node: dict(told) for node, told in link.nodes.items()}
    federation.provision(renew=["berlin"])
    synchronized(kit)
    link.nodes = older
    synchronized(kit)
    assert_sound(kit, link)


def test_the_state_of_each_site(kit: CoordinatorKit, link: FakeSuperLink) -> None:
    assert nodes(kit, HOME) == []
    synchronized(kit)
    assert nodes(kit, HOME) == [Node("berlin", "registered", ""), Node("lisbon", "registered", "")]
    link.nodes[101] |= {"status": "online", "online-at": "2030-01-01", "offline-at": "2029-01-01"}
    link.nodes[102] |= {"status": "offline", "online-at": "2030-01-01", "offline-at": "2030-01-02"}
    assert nodes(kit, HOME) == [
        Node("berlin", "online", "2030-01-01"),
        Node("lisbon", "offline", "2030-01-02"),
    ]
    link.nodes[102]["status"] = "unregistered"
    assert [node.name for node in nodes(kit, HOME)] == ["berlin"]
