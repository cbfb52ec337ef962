"""Waiting for sites before a round: who is awaited, what is reported, what is remembered."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message

from strategies.common.errors import QuorumError
from strategies.exchange.attendance import Awaited
from strategies.exchange.membership import Membership, refresh
from strategies.exchange.waiting import REPORT_INTERVAL_S
from strategies.method.recipes import fedavg
from strategies.storage.position import Position
from strategies.storage.run_directory import run_directory
from tests.strategies.fakes import (
    NODE_IDS,
    Clock,
    FakeGrid,
    LinearSite,
    from_superlink,
    grid_of,
    silent,
)
from tests.strategies.test_round_loop import Watcher, model, run, strategy_of, two_sites

A, B, C, _ = NODE_IDS
DAY_S = 86400.0


def start(grid: FakeGrid, rounds: int, watcher: Watcher, position: Position | None = None) -> None:
    """Run like a process that has already waited for its sites at the start."""
    strategy = strategy_of(fedavg(rounds, 1, 0.1), watcher, position=position, wait_s=600.0)
    strategy._sites = replace(strategy._sites, membership=refresh(strategy._sites.membership, grid))
    strategy.start(grid, model())


def test_a_site_known_to_be_gone_is_not_waited_for_after_a_restart(clock: Clock) -> None:
    grid = grid_of(*two_sites())
    before, after = Watcher(), Watcher()
    start(grid, 1, before)
    grid.stop(B)
    start(grid, 2, before, before.positions[-1])
    assert before.positions[-1].absent == {"b"}
    began = clock.now
    start(grid, 3, after, before.positions[-1])
    assert clock.now - began < 10.0
    assert after.records[-1].missing == ["b"]
    assert after.positions[-1].absent == {"b"}


def test_a_site_that_did_not_come_back_at_the_start_is_not_waited_for_a_second_time(
    clock: Clock,
) -> None:
    grid = grid_of(*two_sites())
    before, after = Watcher(), Watcher()
    start(grid, 1, before)
    grid.stop(B)
    began = clock.now
    start(grid, 2, after, before.positions[-1])
    assert clock.now - began < 10.0
    assert after.positions[-1].absent == {"b"}


def test_a_site_that_was_gone_takes_part_again_and_is_waited_for_when_it_goes_again(
    clock: Clock,
) -> None:
    a, b = two_sites()
    grid = grid_of(a)
    position = Position({}, fedavg(4, 1, 0.1).controller.start(), absent=frozenset({"b"}))

    def comes(request: Message, reply: Message) -> Message:
        grid.nodes[C] = b
        return reply

    def goes(request: Message, reply: Message) -> Message:
        grid.stop(C)
        return from_superlink(request, "node unavailable")

    a.faults, b.faults = {1: comes}, {3: goes}
    watcher, _ = run(grid, fedavg(4, 1, 0.1), wait_s=7.0, position=position)
    assert ["b" in record.participants for record in watcher.records] == [False, True, False, False]
    assert [sorted(position.absent) for position in watcher.positions] == [["b"], [], ["b"], ["b"]]
    assert clock.now == pytest.approx(7.0, abs=1.0)  # once, in round 3


def test_absent_sites_are_in_the_checkpoint(tmp_path: Path) -> None:
    position = Position({}, fedavg(1, 1, 0.1).controller.start(), absent=frozenset({"b", "c"}))
    with run_directory(tmp_path, {}) as record:
        record.begin({}, position, {})
    with run_directory(tmp_path, {}, resume=True) as record:
        assert record.checkpoint is not None
        assert record.checkpoint.position.absent == {"b", "c"}


def that_loses_a_site_in_round_2() -> FakeGrid:
    """Return a grid of sites a and b; b goes offline in round 2."""
    a, b = two_sites()
    grid = grid_of(a, b)

    def goes(request: Message, reply: Message) -> None:
        grid.stop(B)

    b.faults = {2: goes}
    return grid


def test_a_quorum_that_is_lost_for_hours_is_waited_for_and_the_run_goes_on(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    grid = that_loses_a_site_in_round_2()
    clock.after(8 * 3600.0, lambda: grid.nodes.update({C: two_sites()[1]}))
    with caplog.at_level(logging.WARNING, logger="flwr"):
        watcher, _ = run(grid, fedavg(3, 1, 0.1), min_sites=2, wait_s=7.0, quorum_patience_s=DAY_S)
    assert [list(record.participants) for record in watcher.records] == [["a", "b"]] * 3
    assert 8 * 3600.0 <= clock.now <= 8 * 3600.0 + 60.0
    assert "for b: only 1 of the 2 required sites are available" in caplog.text


def test_who_is_missing_is_told_at_first_and_then_every_ten_minutes(clock: Clock) -> None:
    grid = that_loses_a_site_in_round_2()
    clock.after(3605.0, lambda: grid.nodes.update({C: two_sites()[1]}))
    watcher, _ = run(grid, fedavg(2, 1, 0.1), min_sites=2, wait_s=7.0, quorum_patience_s=DAY_S)
    assert len(watcher.awaited) == 6
    assert {(*told.missing, told.num_here, told.quorum) for told in watcher.awaited} == {
        ("b", 1, 2)
    }
    lefts = [told.left_s for told in watcher.awaited]
    assert lefts == pytest.approx(
        [DAY_S - REPORT_INTERVAL_S * number for number in range(6)], abs=60.0
    )


def test_patience_is_bounded_and_counts_over_all_attempts_at_a_round(clock: Clock) -> None:
    grid = that_loses_a_site_in_round_2()
    with pytest.raises(QuorumError):
        run(grid, fedavg(2, 1, 0.1), min_sites=2, wait_s=7.0, quorum_patience_s=DAY_S)
    # Three attempts: the second waits for a day, the third no longer than for any site.
    assert clock.now == pytest.approx(DAY_S, abs=60.0)


def test_a_registered_site_that_never_came_is_named_in_each_round_and_not_waited_for(
    clock: Clock,
) -> None:
    grid, watcher = grid_of(*two_sites()), Watcher()
    known = Membership(names=frozenset({"a", "b", "late"}))
    strategy = strategy_of(fedavg(2, 1, 0.1), watcher, membership=refresh(known, grid))
    strategy.start(grid, model())
    assert [record.missing for record in watcher.records] == [["late"], ["late"]]
    assert clock.now < 30.0


def test_a_site_that_comes_late_takes_part_in_the_next_round_and_the_record_says_from_when() -> (
    None
):
    a, b = two_sites()
    grid = grid_of(a)

    def comes(request: Message, reply: Message) -> Message:
        grid.nodes[C] = b
        return reply

    a.faults = {2: comes}
    watcher, _ = run(grid, fedavg(4, 1, 0.1))
    assert [sorted(record.participants) for record in watcher.records] == [
        ["a"],
        ["a"],
        ["a", "b"],
        ["a", "b"],
    ]
    assert [record.joined for record in watcher.records] == [[], [], ["b"], []]


def test_a_newcomer_during_a_round_saves_the_quorum_that_another_site_loses(clock: Clock) -> None:
    """Two of three sites are online all the time, so a quorum of two is never lacking."""
    a, b = two_sites()
    newcomer = LinearSite("c")
    grid = grid_of(a, b)
    a.faults = {1: silent}

    def dies(request: Message, reply: Message) -> Message:
        grid.stop(A)
        grid.nodes[C] = newcomer
        grid.hello_delays[C] = 9.0  # a SuperNode needs seconds to answer
        return reply

    b.faults = {1: dies}
    watcher, _ = run(grid, fedavg(2, 1, 0.1), min_sites=2, wait_s=60.0)
    assert [sorted(record.participants) for record in watcher.records] == [["b", "c"]] * 2
    assert watcher.records[1].missing == ["a"]


def test_the_error_says_how_long_the_quorum_was_waited_for_and_by_which_key(clock: Clock) -> None:
    with pytest.raises(QuorumError) as caught:
        run(
            that_loses_a_site_in_round_2(), fedavg(2, 1, 0.1),
            min_sites=2, wait_s=7.0, quorum_patience_s=DAY_S,
        )  # fmt: skip
    waited = re.search(
        r"Waited (\d+) s for the quorum; to wait longer, set (\S+)", str(caught.value)
    )
    assert waited is not None
    assert waited[2] == "quorum-patience-s"
    assert float(waited[1]) == pytest.approx(clock.now, abs=60.0)


@pytest.mark.parametrize(
    ("awaited", "text"),
    [
        (Awaited(["b"], 2, 2, 600.0), "waiting up to 600 s for b"),
        (
            Awaited(["b", "c"], 1, 2, DAY_S),
            "waiting up to 24.0 h for b, c: only 1 of the 2 required sites are available",
        ),
        (
            Awaited([], 0, 2, 59.6),
            "waiting up to 60 s for more sites: only 0 of the 2 required sites are available",
        ),
    ],
)
def test_a_wait_in_a_line_for_people(awaited: Awaited, text: str) -> None:
    assert str(awaited) == text
