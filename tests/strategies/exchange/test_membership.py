"""Membership: which sites are online, under which names, and how long to wait for them."""

import logging
from itertools import pairwise

import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from strategies.common.errors import ConfigError, QuorumError, RunError
from strategies.exchange import membership as membership_module
from strategies.exchange.membership import (
    HELLO_DEADLINE_S,
    Admission,
    Membership,
    refresh,
)
from strategies.exchange.messages import PROTOCOL_VERSION, SiteCard
from strategies.exchange.waiting import wait_for_sites, wait_until_online
from tests.strategies.fakes import (
    NODE_IDS,
    Clock,
    FakeGrid,
    Handler,
    LinearSite,
    from_superlink,
    grid_of,
)

A, B, C, _ = NODE_IDS
WAIT_S = 20.0


def other_protocol(message: Message) -> Message:
    card = SiteCard("site-x", 0, version="9.9", protocol=PROTOCOL_VERSION + 1)
    return Message(card.to_content(), reply_to=message)


def nameless(message: Message) -> Message:
    return Message(SiteCard("", 0, version="test").to_content(), reply_to=message)


def not_one_of_ours(message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def raises(message: Message) -> Message:
    return Message(Error(2, "no key 'site' in the node config"), reply_to=message)


def gone(message: Message) -> Message:
    return from_superlink(message, "node unavailable")


def silent(message: Message) -> None:
    return None


def test_sites_are_known_by_name_in_the_order_of_their_names() -> None:
    grid = grid_of(LinearSite("site-c"), LinearSite("site-a"), LinearSite("site-b"))
    nodes = refresh(Membership(), grid).nodes
    assert list(nodes.items()) == [("site-a", B), ("site-b", C), ("site-c", A)]


def test_a_card_says_what_the_site_said() -> None:
    grid = grid_of(LinearSite("site-a", num_partitions=4))
    assert refresh(Membership(), grid).cards == {A: SiteCard("site-a", 4, "test")}


def test_a_node_is_asked_who_it_is_once() -> None:
    first, second = LinearSite("site-a"), LinearSite("site-b")
    grid = grid_of(first)
    known = refresh(Membership(), grid)
    grid.nodes[B] = second
    assert list(refresh(known, grid).nodes) == ["site-a", "site-b"]
    assert (first.num_hellos, second.num_hellos) == (1, 1)


def test_a_hello_carries_nothing_and_is_a_query() -> None:
    grid = grid_of(LinearSite("site-a"))
    refresh(Membership(), grid)
    (hello,) = grid.sent
    assert hello.metadata.message_type == MessageType.QUERY
    assert len(hello.content) == 0


def test_a_node_that_went_offline_leaves_and_is_asked_again_when_it_is_back() -> None:
    site = LinearSite("site-a")
    grid = grid_of(site, LinearSite("site-b"))
    known = refresh(Membership(), grid)
    del grid.nodes[A]
    without = refresh(known, grid)
    assert list(without.nodes) == ["site-b"]
    grid.nodes[A] = site
    assert list(refresh(without, grid).nodes) == ["site-a", "site-b"]
    assert site.num_hellos == 2


@pytest.mark.parametrize(("old", "new"), [(A, B), (B, A)])
def test_of_a_restarted_site_the_newest_node_speaks_whatever_its_id(old: int, new: int) -> None:
    grid = FakeGrid({old: LinearSite("site-a")})
    known = refresh(Membership(), grid)
    grid.nodes[new] = LinearSite("site-a")  # the old one still counts as online
    both = refresh(known, grid)
    assert both.nodes == {"site-a": new}
    assert refresh(both, grid).nodes == {"site-a": new}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (other_protocol, "another protocol"),
        (not_one_of_ours, "another protocol"),
        (nameless, "did not give a site name"),
        (raises, "no key 'site' in the node config"),
    ],
)
def test_a_node_that_cannot_take_part_is_refused_with_the_reason(
    node: Handler, reason: str
) -> None:
    membership = refresh(Membership(), grid_of(LinearSite("site-a"), node))
    assert membership.nodes == {"site-a": A}
    assert list(membership.refused) == [B]
    assert reason in membership.refused[B]


def test_a_refused_protocol_is_named_with_the_one_that_is_spoken_here() -> None:
    (reason,) = refresh(Membership(), grid_of(other_protocol)).refused.values()
    assert f"got {PROTOCOL_VERSION + 1}, expected {PROTOCOL_VERSION}" in reason
    assert "same version of mdc-flower" in reason


def test_a_refused_node_that_went_offline_is_forgotten() -> None:
    grid = grid_of(other_protocol)
    known = refresh(Membership(), grid)
    del grid.nodes[A]
    assert refresh(known, grid) == Membership()


def test_a_node_that_does_not_answer_holds_no_one_up_for_longer_than_the_deadline(
    clock: Clock,
) -> None:
    membership = refresh(Membership(), grid_of(LinearSite("site-a"), silent), 3.0)
    assert membership.nodes == {"site-a": A}
    assert clock.now == pytest.approx(3.0)
    refresh(Membership(), grid_of(LinearSite("site-a"), silent))
    assert clock.now == pytest.approx(3.0 + membership_module.HELLO_DEADLINE_S)


@pytest.mark.parametrize("node", [silent, gone])
def test_a_node_that_does_not_answer_is_not_refused_but_asked_again_after_a_pause(
    node: Handler, clock: Clock
) -> None:
    grid, membership = grid_of(node), Membership()
    asked_at: list[float] = []
    while len(asked_at) < 4:
        before = len(grid.sent)
        membership = refresh(membership, grid, 1.0)
        assert (membership.cards, membership.refused, list(membership.silent)) == ({}, {}, [A])
        asked_at += [clock.now] * (len(grid.sent) - before)
        clock.sleep(1.0)
    pauses = [after - one for one, after in pairwise(asked_at)]
    life_s = HELLO_DEADLINE_S if node is silent else 0.0
    expected = [life_s + HELLO_DEADLINE_S * factor for factor in (0, 1, 3)]
    assert pauses == pytest.approx(expected, abs=5.0)
    grid.nodes[A] = LinearSite("site-a")
    for _ in range(2):
        clock.sleep(8 * HELLO_DEADLINE_S)
        membership = refresh(membership, grid, 1.0)
    assert (list(membership.nodes), membership.silent) == (["site-a"], {})


def test_an_answer_counts_though_nobody_waits_for_it_any_more(clock: Clock) -> None:
    """A site whose answers always come after the wait would otherwise never take part."""
    grid = grid_of(LinearSite("site-a"), LinearSite("site-b"))
    grid.hello_delays[B] = 40.0
    membership = refresh(Membership(), grid, 30.0)
    assert list(membership.nodes) == ["site-a"]
    membership = refresh(membership, grid, 0.2)
    assert list(membership.nodes) == ["site-a"]
    clock.sleep(10.0)
    membership = refresh(membership, grid, 0.2)
    assert list(membership.nodes) == ["site-a", "site-b"]
    assert len(grid.sent) == 2, "no site is asked twice"


def test_a_silent_node_is_forgotten_when_it_goes_and_asked_at_once_when_it_is_back() -> None:
    grid = grid_of(silent)
    known = refresh(Membership(), grid, 1.0)
    del grid.nodes[A]
    known = refresh(known, grid, 1.0)
    assert known == Membership()
    grid.nodes[A] = LinearSite("site-a")
    assert refresh(known, grid, 1.0).nodes == {"site-a": A}


def test_a_refused_node_is_asked_again_after_a_pause_because_it_may_be_mended(
    clock: Clock,
) -> None:
    """A site whose operator mends it and restarts it at once never counts as offline."""
    grid = grid_of(raises)
    known = refresh(Membership(), grid)
    assert refresh(known, grid) == known
    assert len(grid.sent) == 1
    grid.nodes[A] = LinearSite("site-a")
    clock.sleep(membership_module.REFUSED_PAUSE_S)
    known = refresh(known, grid)
    assert (known.nodes, known.refused, known.silent) == ({"site-a": A}, {}, {})


def test_no_pause_between_two_hellos_exceeds_the_longest(clock: Clock) -> None:
    grid, membership = grid_of(gone), Membership()
    asked_at: list[float] = []
    while len(asked_at) < 8:
        before = len(grid.sent)
        membership = refresh(membership, grid, 1.0)
        asked_at += [clock.now] * (len(grid.sent) - before)
        clock.sleep(5.0)
    pauses = [after - one for one, after in pairwise(asked_at)]
    assert pauses[-1] == pytest.approx(membership_module.LONGEST_PAUSE_S, abs=6.0)


def test_when_the_time_is_over_the_error_tells_the_missing_from_the_silent() -> None:
    admission = Admission(name_of=lambda node: "site-b")
    known = Membership(admission=admission, names=frozenset({"site-a", "site-b", "site-c"}))
    with pytest.raises(QuorumError) as caught:
        wait_for_sites(grid_of(LinearSite("site-a"), silent), 3, WAIT_S, membership=known)
    assert caught.value.got == ("site-a; online, but gave no name yet: site-b; not online: site-c")


def test_the_error_names_the_key_that_limited_the_wait_and_the_seconds_waited(
    clock: Clock,
) -> None:
    began = clock.now
    with pytest.raises(QuorumError, match="wait-for-sites-s") as short:
        wait_for_sites(grid_of(LinearSite("site-a")), 2, WAIT_S)
    assert f"within {clock.now - began:.0f} s" in str(short.value)
    began = clock.now
    with pytest.raises(QuorumError, match="quorum-patience-s") as long:
        wait_for_sites(grid_of(LinearSite("site-a")), 2, WAIT_S, patience_s=500.0)
    assert f"within {clock.now - began:.0f} s" in str(long.value)
    assert clock.now - began >= 500.0


# Admission


def admit_none(node: int, card: SiteCard) -> str | None:
    return f"{card.name} is not wanted"


def test_a_node_that_is_not_admitted_is_refused_with_its_name_and_the_reason() -> None:
    seen: list[tuple[int, SiteCard]] = []

    def admission(node: int, card: SiteCard) -> str | None:
        seen.append((node, card))
        return "it is not wanted" if node == B else None

    grid = grid_of(LinearSite("site-a"), LinearSite("site-b"))
    membership = refresh(Membership(admission=Admission(admission)), grid)
    assert membership.nodes == {"site-a": A}
    assert membership.refused == {B: f"node {B}: site 'site-b': it is not wanted"}
    assert membership.names == {"site-a"}  # one that was never admitted is not missed
    assert sorted(seen) == sorted([(A, membership.cards[A]), (B, SiteCard("site-b", 0, "test"))])


def test_a_node_that_is_not_understood_is_not_judged() -> None:
    judged: list[int] = []

    def admission(node: int, card: SiteCard) -> str | None:
        judged.append(node)
        return None

    refresh(
        Membership(admission=Admission(admission)), grid_of(raises, other_protocol, silent), 1.0
    )
    assert judged == []


def test_a_node_that_was_not_admitted_is_judged_again_after_a_pause(clock: Clock) -> None:
    site, wanted = LinearSite("site-a"), False

    def admission(node: int, card: SiteCard) -> str | None:
        return None if wanted else "not yet"

    grid = grid_of(site)
    membership = refresh(Membership(admission=Admission(admission)), grid)
    clock.sleep(membership_module.REFUSED_PAUSE_S - 1)
    membership = refresh(membership, grid)
    assert (site.num_hellos, list(membership.refused)) == (1, [A])
    clock.sleep(1.0)
    membership = refresh(membership, grid)
    assert (site.num_hellos, list(membership.refused)) == (2, [A])
    wanted = True
    clock.sleep(membership_module.REFUSED_PAUSE_S)
    membership = refresh(membership, grid)
    assert (membership.nodes, membership.refused, membership.silent) == ({"site-a": A}, {}, {})


def test_a_judge_that_cannot_judge_admits_no_one_and_is_asked_again(clock: Clock) -> None:
    broken = True

    def admission(node: int, card: SiteCard) -> str | None:
        if broken:
            raise ConfigError("the register of sites cannot be read", where="there")
        return None

    grid = grid_of(LinearSite("site-a"))
    membership = refresh(Membership(admission=Admission(admission)), grid)
    assert membership.nodes == {}
    assert "the register of sites cannot be read" in membership.refused[A]
    broken = False
    clock.sleep(membership_module.REFUSED_PAUSE_S)
    assert refresh(membership, grid).nodes == {"site-a": A}


def test_a_node_that_is_silent_when_it_is_judged_again_is_not_refused(clock: Clock) -> None:
    grid = grid_of(LinearSite("site-a"))
    membership = refresh(Membership(admission=Admission(admit_none)), grid)
    grid.nodes[A] = silent
    clock.sleep(membership_module.REFUSED_PAUSE_S)
    membership = refresh(membership, grid, 1.0)
    assert (membership.refused, list(membership.silent)) == ({}, [A])


def test_the_judge_stays_whatever_becomes_of_the_roster() -> None:
    grid = grid_of(LinearSite("site-a"))
    membership = refresh(Membership(admission=Admission(admit_none)), grid)
    del grid.nodes[A]
    membership = refresh(membership, grid)
    grid.nodes[A] = LinearSite("site-a")
    assert refresh(membership, grid).nodes == {}


def test_the_judge_is_asked_while_sites_are_waited_for() -> None:
    with pytest.raises(QuorumError, match="only 0 of 1 sites") as caught:
        wait_for_sites(
            grid_of(LinearSite("site-a")),
            1,
            WAIT_S,
            membership=Membership(admission=Admission(admit_none)),
        )
    assert "site-a is not wanted" in str(caught.value)


@pytest.mark.parametrize(
    ("simulated", "expected"),
    [([], False), ([True, True], True), ([False, False], False), ([True, False], False)],
)
def test_a_federation_is_simulated_when_all_of_its_sites_are(
    simulated: list[bool], expected: bool
) -> None:
    sites = [LinearSite(f"site-{i}", simulated=is_one) for i, is_one in enumerate(simulated)]
    assert refresh(Membership(), grid_of(*sites)).simulated is expected


def test_a_site_that_has_gone_is_missing_until_it_is_back() -> None:
    grid = grid_of(LinearSite("b"), LinearSite("a"), LinearSite("c"))
    membership = refresh(Membership(), grid)
    assert membership.missing == []
    grid.stop(A)
    grid.stop(C)
    membership = refresh(membership, grid)
    assert membership.missing == ["b", "c"]
    assert membership.names == {"a", "b", "c"}
    grid.nodes[C] = LinearSite("b")
    assert refresh(membership, grid).missing == ["c"]


def test_sites_are_waited_for_until_enough_are_online(clock: Clock) -> None:
    grid = grid_of(LinearSite("a"), LinearSite("b"))
    membership = refresh(Membership(), grid)
    grid.stop(B)
    clock.after(7.0, lambda: grid.nodes.update({C: LinearSite("b")}))
    membership = wait_until_online(membership, grid, lambda online: "b" in online, WAIT_S)
    assert membership.nodes == {"a": A, "b": C}
    assert clock.now == pytest.approx(7.0, abs=1.1)


def test_sites_are_waited_for_no_longer_than_that(clock: Clock) -> None:
    grid = grid_of(LinearSite("a"), LinearSite("b"))
    membership = refresh(Membership(), grid)
    grid.stop(B)
    assert wait_until_online(membership, grid, lambda online: False, WAIT_S).missing == ["b"]
    assert clock.now == pytest.approx(WAIT_S)


def test_a_roster_that_knows_no_one_has_no_sites_and_no_partitions() -> None:
    assert (Membership().nodes, Membership().num_partitions) == ({}, 0)


def test_one_site_cannot_make_parts_of_what_the_others_hold_as_their_own() -> None:
    honest = LinearSite("site-a"), LinearSite("site-b")
    membership = refresh(Membership(), grid_of(*honest, LinearSite("site-c", num_partitions=7)))
    assert membership.num_partitions == 0
    parts = [LinearSite(f"site-{index}", num_partitions=2) for index in range(2)]
    assert refresh(Membership(), grid_of(*parts)).num_partitions == 2


def test_waiting_ends_when_the_expected_sites_are_there() -> None:
    grid = grid_of(LinearSite("site-a"), LinearSite("site-b"))
    assert list(wait_for_sites(grid, 2, WAIT_S).nodes) == ["site-a", "site-b"]


def test_sites_that_come_while_it_waits_are_counted_and_reported_one_change_at_a_time() -> None:
    grid = grid_of(LinearSite("site-a"))
    reported: list[tuple[list[str], int | None]] = []

    def on_progress(membership: Membership, expected: int | None) -> None:
        reported.append((list(membership.nodes), expected))
        grid.nodes[B] = LinearSite("site-b")  # online from the next look on

    wait_for_sites(grid, 2, 60.0, on_progress=on_progress)
    assert reported == [(["site-a"], 2), (["site-a", "site-b"], 2)]


def test_a_look_that_finds_no_change_is_not_reported() -> None:
    reported: list[list[str]] = []
    with pytest.raises(RunError, match="only 1 of 2"):
        wait_for_sites(
            grid_of(LinearSite("site-a")),
            2,
            WAIT_S,
            on_progress=lambda membership, expected: reported.append(list(membership.nodes)),
        )
    assert reported == [["site-a"]]


def test_a_site_that_comes_while_another_node_is_silent_is_not_overlooked() -> None:
    def silent_while_another_comes(message: Message) -> None:
        grid.nodes[B] = LinearSite("site-b")

    grid = grid_of(silent_while_another_comes)
    assert list(wait_for_sites(grid, 1, WAIT_S).nodes) == ["site-b"]


def test_without_a_number_all_simulated_sites_are_waited_for() -> None:
    sites = [LinearSite(f"site-{index}", num_partitions=3) for index in range(3)]
    grid = grid_of(sites[0])
    expected_by_then: list[int | None] = []

    def on_progress(membership: Membership, expected: int | None) -> None:
        expected_by_then.append(expected)
        grid.nodes.update({B: sites[1], C: sites[2]})

    assert list(wait_for_sites(grid, None, 60.0, on_progress=on_progress).nodes) == [
        s.name for s in sites
    ]
    assert expected_by_then == [3, 3]


def test_a_number_goes_before_the_number_of_simulated_sites() -> None:
    sites = [LinearSite(f"site-{index}", num_partitions=3) for index in range(2)]
    assert len(wait_for_sites(grid_of(*sites), 2, WAIT_S).nodes) == 2


def test_without_a_number_real_sites_are_refused_by_key() -> None:
    with pytest.raises(
        ConfigError, match="the number of real sites to wait for is not set"
    ) as caught:
        wait_for_sites(grid_of(LinearSite("site-a")), None, 60.0)
    assert caught.value.where == "num-sites"


def test_when_the_time_is_over_the_error_names_the_sites_that_are_there() -> None:
    grid = grid_of(LinearSite("lyon"), LinearSite("bern"))
    with pytest.raises(QuorumError) as caught:
        wait_for_sites(grid, 3, WAIT_S)
    assert "only 2 of 3 sites came online within 20 s" in caught.value.what
    assert caught.value.got == "bern, lyon"
    assert "num-sites" in str(caught.value)
    assert "wait-for-sites-s" in caught.value.hint


def test_when_the_time_is_over_the_error_says_why_a_node_was_refused() -> None:
    with pytest.raises(RunError) as caught:
        wait_for_sites(grid_of(LinearSite("lyon"), other_protocol), 2, WAIT_S)
    assert "lyon" in str(caught.value.got)
    assert "another protocol" in str(caught.value.got)


@pytest.mark.parametrize("num_sites", [2, None])
def test_when_no_site_came_the_error_says_so(num_sites: int | None) -> None:
    with pytest.raises(RunError, match=r"only 0 of .* came online") as caught:
        wait_for_sites(grid_of(), num_sites, WAIT_S)
    assert caught.value.got == "no site"


def test_two_nodes_of_one_name_are_one_site() -> None:
    grid = grid_of(LinearSite("site-a"), LinearSite("site-a"))
    with pytest.raises(RunError, match="only 1 of 2"):
        wait_for_sites(grid, 2, WAIT_S)


@pytest.mark.parametrize(("min_sites", "online"), [(2, 2), (1, 2), (2, 3)])
def test_when_the_time_is_over_the_quorum_is_enough_and_it_says_so(
    min_sites: int, online: int, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    grid = grid_of(*(LinearSite(f"site-{index}") for index in range(online)))
    with caplog.at_level(logging.WARNING, logger="flwr"):
        membership = wait_for_sites(grid, 4, WAIT_S, min_sites)
    assert len(membership.nodes) == online
    assert clock.now == pytest.approx(WAIT_S)  # the quorum ends no wait before its time
    assert f"continuing with {online} of 4 sites" in caplog.text


def test_below_the_quorum_the_run_stops_and_can_be_taken_up_again() -> None:
    with pytest.raises(QuorumError, match="only 1 of 4") as caught:
        wait_for_sites(grid_of(LinearSite("site-a")), 4, WAIT_S, min_sites=2)
    assert caught.value.expected == "2 or more"
    assert caught.value.exit_code == 3
    assert "min-sites" in caught.value.hint


def test_a_node_that_does_not_answer_does_not_stretch_the_wait(clock: Clock) -> None:
    with pytest.raises(QuorumError, match="only 0 of 1"):
        wait_for_sites(grid_of(silent), 1, 60.0)
    assert clock.now == pytest.approx(60.0, abs=0.5)


def expired(message: Message) -> Message:
    """Act as a node that is not ready until its hello has expired."""
    return from_superlink(message, "Message Unavailable", ErrorCode.MESSAGE_UNAVAILABLE)


def test_a_node_whose_hello_expired_has_not_refused_and_is_asked_again() -> None:
    grid = grid_of(LinearSite("site-a"), expired)
    membership = refresh(Membership(), grid, 1.0)
    assert membership.refused == {}
    assert list(membership.silent) == [B]
    grid.nodes[B] = LinearSite("site-b")
    assert list(refresh(membership, grid, 1.0).nodes) == ["site-a", "site-b"]


def test_a_hello_lives_long_enough_for_a_busy_node_that_polls() -> None:
    grid = grid_of(LinearSite("site-a"))
    refresh(Membership(), grid, 0.1)
    (hello,) = grid.sent
    assert hello.metadata.ttl == HELLO_DEADLINE_S >= 120.0


def test_a_site_that_comes_up_in_the_last_seconds_of_the_wait_has_time_to_answer(
    clock: Clock,
) -> None:
    grid = grid_of(LinearSite("site-a"))
    grid.hello_delays = {B: 9.0}
    clock.after(WAIT_S - 0.5, lambda: grid.nodes.update({B: LinearSite("site-b")}))
    assert list(wait_for_sites(grid, 2, WAIT_S).nodes) == ["site-a", "site-b"]
    assert clock.now == pytest.approx(WAIT_S + 9.0, abs=1.5)


# A run that goes on


def test_a_run_that_goes_on_does_not_wait_for_a_site_known_to_be_gone(clock: Clock) -> None:
    grid = grid_of(LinearSite("a"), LinearSite("b"))
    membership = wait_for_sites(grid, 3, 600.0, 2, known="abc", absent="c")
    assert list(membership.nodes) == ["a", "b"]
    assert clock.now < 5.0


def test_a_run_that_goes_on_waits_for_every_site_that_is_not_known_to_be_gone(
    clock: Clock,
) -> None:
    grid = grid_of(LinearSite("a"), LinearSite("b"))
    clock.after(100.0, lambda: grid.nodes.update({C: LinearSite("c")}))
    membership = wait_for_sites(grid, 4, 600.0, 2, known="abcd", absent="d")
    assert list(membership.nodes) == ["a", "b", "c"]
    assert clock.now == pytest.approx(100.0, abs=3.0)


def test_a_run_that_goes_on_waits_for_its_quorum_though_all_others_are_known_to_be_gone(
    clock: Clock,
) -> None:
    grid = grid_of(LinearSite("a"))
    with pytest.raises(QuorumError):
        wait_for_sites(grid, 3, WAIT_S, 2, known="abc", absent="bc")
    assert clock.now == pytest.approx(WAIT_S)


def test_simulated_sites_of_a_run_that_goes_on_are_all_waited_for(clock: Clock) -> None:
    sites = [LinearSite(name, num_partitions=3, simulated=True) for name in "abc"]
    grid = grid_of(*sites[:2])
    clock.after(2.0, lambda: grid.nodes.update({C: sites[2]}))
    membership = wait_for_sites(grid, None, 600.0, None, known="ab", patience_s=9000.0)
    assert list(membership.nodes) == ["a", "b", "c"]


def test_the_quorum_of_a_run_that_goes_on_is_waited_for_longer_and_it_is_told(
    clock: Clock,
) -> None:
    told: list[tuple[list[str], float]] = []

    def on_wait(membership: Membership, left_s: float) -> None:
        told.append((list(membership.nodes), round(left_s)))

    grid = grid_of(LinearSite("a"))
    clock.after(1500.0, lambda: grid.nodes.update({C: LinearSite("c")}))
    membership = wait_for_sites(grid, 3, 600.0, 2, known="abc", patience_s=9000.0, on_wait=on_wait)
    assert list(membership.nodes) == ["a", "c"]  # and nobody waits for b as well
    assert clock.now == pytest.approx(1500.0, abs=10.0)
    assert [online for online, _ in told] == [["a"], ["a"]]
    assert [left_s for _, left_s in told] == pytest.approx([8400, 7800], abs=10)


def test_patience_for_a_quorum_ends(clock: Clock) -> None:
    with pytest.raises(QuorumError, match="only 1 of 3 sites came online within 9000 s"):
        wait_for_sites(grid_of(LinearSite("a")), 3, 600.0, 2, known="abc", patience_s=9000.0)
    assert clock.now == pytest.approx(9000.0)


def test_simulated_sites_are_not_waited_for_longer(clock: Clock) -> None:
    grid = grid_of(LinearSite("a", num_partitions=3, simulated=True))
    with pytest.raises(QuorumError, match="within 600 s"):
        wait_for_sites(grid, 3, 600.0, 2, known="abc", patience_s=9000.0)
    assert clock.now == pytest.approx(600.0)
