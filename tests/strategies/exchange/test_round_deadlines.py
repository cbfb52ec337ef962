"""How long a round waits for the other sites after the quorum is met."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import MessageType

from strategies.aggregation.averaging import by_examples
from strategies.exchange.deadline import MIN_DEADLINE_S, Deadline, Pacing
from strategies.exchange.messages import deadline_of
from strategies.exchange.update_store import MemoryUpdates
from strategies.method.recipes import fedavg
from tests.strategies.fakes import NODE_IDS, Clock, FakeGrid, LinearSite, raises, silent, times
from tests.strategies.test_recalibration import Bench, three
from tests.strategies.test_round_loop import Watcher, model, run, strategy_of, three_sites

A, B, C, D = NODE_IDS
DAY_S = 86400.0


def grid(*sites: Any, **options: Any) -> FakeGrid:
    return FakeGrid(dict(zip(NODE_IDS, sites, strict=False)), **options)


def learned(nodes: FakeGrid, rounds: int = 1, **options: Any) -> Watcher:
    """Run with learned deadlines, which are the default."""
    return run(nodes, fedavg(rounds, 1, 0.1), timeout=0.0, **options)[0]


def test_a_silent_site_does_not_hold_the_first_round_once_a_quorum_has_answered(
    clock: Clock,
) -> None:
    nodes = grid(*three_sites(c={1: silent}), delays={A: 30.0, B: 100.0})
    watcher = learned(nodes, min_sites=2)
    (record,) = watcher.records
    assert list(record.participants) == ["a", "b"]
    # Three times the 100 s of the slowest that has answered.
    assert clock.now == pytest.approx(300.0, abs=10.0)
    assert "no reply within 30" in record.dropped["c"]


def test_the_wait_after_a_quorum_is_never_shorter_than_a_learned_deadline(clock: Clock) -> None:
    learned(grid(*three_sites(c={1: silent})), min_sites=2)
    assert clock.now == pytest.approx(MIN_DEADLINE_S, abs=2.0)


def test_each_answer_prolongs_the_wait_for_the_others() -> None:
    nodes = grid(*three_sites(), delays={A: 50.0, B: 140.0, C: 400.0})
    # 3 * 50 s is enough for b, and then 3 * 140 s for c.
    assert list(learned(nodes).records[0].participants) == ["a", "b", "c"]


def test_below_the_quorum_nobody_is_given_up(clock: Clock) -> None:
    nodes = grid(*three_sites(), delays={B: 20_000.0, C: 50_000.0})
    assert list(learned(nodes, min_sites=3).records[0].participants) == ["a", "b", "c"]
    assert clock.now >= 50_000.0


def test_a_round_that_is_tried_again_gives_up_silent_sites_too(clock: Clock) -> None:
    nodes = grid(*three_sites(b={1: times(2, raises)}, c={1: silent}), delays={A: 40.0, B: 1.0})
    watcher = learned(nodes, min_sites=2, deadline=Deadline(longest_s=1000.0))
    (record,) = watcher.records
    assert (record.attempts, list(record.participants)) == (2, ["a", "b"])
    # The first attempt lacks its quorum to the end; the second has that of a's 40 s, kept.
    assert clock.now == pytest.approx(1000.0 + 120.0, abs=5.0)


def test_updates_kept_by_an_earlier_process_tell_how_long_the_others_may_take(
    clock: Clock,
) -> None:
    store = MemoryUpdates()
    nodes = grid(*three_sites(c={1: silent}), delays={A: 100.0, B: 120.0})
    recipe = fedavg(1, 1, 0.1)
    with pytest.raises(RuntimeError, match="the coordinator dies"):
        strategy_of(recipe, Dying(after=2), updates=store, min_sites=2).start(nodes, model())
    again = clock.now
    learned(nodes, min_sites=2, updates=store)
    assert clock.now - again == pytest.approx(360.0, abs=10.0)


class Dying(Watcher):
    """Ends the process after some replies."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        self.after -= 1
        if self.after == 0:
            raise RuntimeError("the coordinator dies")


def test_a_site_that_is_known_to_be_slow_is_not_given_up_for_the_haste_of_the_others() -> None:
    nodes = grid(*three_sites(), delays={C: 150.0})
    watcher = learned(nodes, rounds=3, min_sites=3)
    assert [len(record.participants) for record in watcher.records] == [3, 3, 3]
    nodes = grid(*three_sites(), delays={C: 150.0})
    resumed = learned(nodes, rounds=6, min_sites=2, position=watcher.positions[-1])
    assert [len(record.participants) for record in resumed.records] == [3, 3, 3]


def test_a_site_too_slow_for_the_first_round_is_given_its_time_once_that_is_known() -> None:
    nodes = grid(*three_sites(), delays={A: 30.0, B: 40.0, C: 400.0})
    watcher = learned(nodes, rounds=6, min_sites=2)
    took_part = ["c" in record.participants for record in watcher.records]
    assert took_part[0] is False
    assert watcher.records[0].dropped["c"].endswith(" s")
    assert took_part[-1] is True
    late = [record.round for record in watcher.records if record.late]
    assert took_part == [number > late[0] for number in range(1, 7)]


def test_a_site_that_has_become_slower_is_not_waited_for_longer() -> None:
    nodes = grid(*three_sites(), delays={A: 30.0, B: 40.0, C: 50.0})
    watcher = learned(nodes, rounds=2, min_sites=2)
    nodes.delays[C] = 700.0
    later = learned(nodes, rounds=9, min_sites=2, position=watcher.positions[-1])
    assert any(record.late for record in later.records)
    assert not any("c" in record.participants for record in later.records)


def test_simulated_sites_that_share_a_machine_may_differ_much_in_the_first_round() -> None:
    sites = [LinearSite(f"site-{number}", num_partitions=3, simulated=True) for number in range(3)]
    nodes = grid(*sites, delays={A: 30.0, B: 30.0, C: 300.0})
    assert len(learned(nodes, min_sites=2).records[0].participants) == 3


def test_a_silent_simulated_site_does_not_hold_the_first_round_for_a_day(clock: Clock) -> None:
    sites = [LinearSite(f"site-{number}", num_partitions=3, simulated=True) for number in range(3)]
    sites[2].faults = {1: silent}
    learned(grid(*sites, delays={A: 30.0, B: 30.0}), min_sites=2)
    assert clock.now < 0.02 * DAY_S


def test_a_fixed_deadline_is_not_shortened(clock: Clock) -> None:
    nodes = grid(*three_sites(c={1: silent}), delays={A: 30.0, B: 40.0})
    run(nodes, fedavg(1, 1, 0.1), min_sites=2, timeout=500.0)
    assert clock.now == pytest.approx(500.0)


def test_the_final_evaluation_waits_for_no_silent_site_longer_than_that(clock: Clock) -> None:
    a, b, c = three_sites()
    c.evaluate_fault = silent
    nodes = grid(a, b, c)
    watcher = learned(nodes, min_sites=2, site_evaluation=True)
    (record,) = watcher.records
    assert record.site_evaluation["num-validation-examples"] == 4
    assert "evaluation" in record.dropped["c"]
    assert clock.now == pytest.approx(MIN_DEADLINE_S, abs=5.0)


def test_the_final_evaluation_is_waited_for_as_long_as_training_took(clock: Clock) -> None:
    a, b, c = three_sites()
    b.evaluate_fault = c.evaluate_fault = silent
    learned(grid(a, b, c, delays={A: 50.0}), min_sites=2, site_evaluation=True)
    # Only one has evaluated, which is no quorum: not the day of the first round, but 3 * 50 s.
    assert clock.now == pytest.approx(50.0 + 150.0, abs=10.0)


def test_statistics_of_a_silent_site_are_not_waited_for_once_a_quorum_has_sent_theirs(
    tmp_path: Path, clock: Clock
) -> None:
    nodes = grid(*three(c=silent), delays={A: 40.0, B: 30.0})
    pacing = Pacing(Deadline(), quorum=2)
    _, told = Bench(tmp_path, pacing=pacing).apply(nodes)
    assert list(told["participants"]) == ["a", "b"]
    assert clock.now == pytest.approx(120.0, abs=5.0)


def test_the_evaluation_after_a_recalibration_waits_no_longer_either(
    tmp_path: Path, clock: Clock
) -> None:
    sites = three()

    def evaluates_nothing(message: Any) -> Any:
        return None if message.metadata.message_type == MessageType.EVALUATE else sites[2](message)

    pacing = Pacing(Deadline(), quorum=2)
    nodes = grid(*sites[:2], evaluates_nothing)
    _, told = Bench(tmp_path, pacing=pacing, site_evaluation=True, weighting=by_examples).apply(
        nodes
    )
    assert told["site_evaluation"]["num-validation-examples"] == 4
    assert clock.now == pytest.approx(MIN_DEADLINE_S, abs=5.0)


def test_sites_are_told_the_whole_deadline_though_the_wait_may_end_before() -> None:
    nodes = grid(*three_sites())
    learned(nodes)
    told = {deadline_of(message.content) for message in nodes.sent_of_type(MessageType.TRAIN)}
    assert told == {DAY_S}
