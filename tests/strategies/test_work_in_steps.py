"""Rounds counted in steps: their length and their place, also over repeats and resumes."""

import pytest
from flwr.app import Message

from strategies.aggregation.outer_optimizers import Momentum
from strategies.exchange.messages import METRICS, NUM_EXAMPLES
from strategies.method.growing import Growing
from strategies.method.local_work import (
    Fixed,
    Horizon,
    IncreasedLocalEpochs,
    Spread,
    Unit,
    WorkController,
    WorkState,
)
from strategies.method.recipes import LrSchedule, Recipe
from tests.strategies.fakes import Fault, LinearSite, grid_of, raises, sends_nan, times
from tests.strategies.test_round_loop import model, run


def in_steps(controller: WorkController, horizon: Horizon) -> Recipe:
    return Recipe(LrSchedule(0.1), controller, horizon, unit="steps")


def ile(budget: int) -> Recipe:
    return in_steps(IncreasedLocalEpochs(3, 0.01, None), Horizon(None, budget))


def still(name: str = "a") -> LinearSite:
    """Return a site that does not move the model, so each round counts as settled."""
    return LinearSite(name, step=0.0)


def orders(site: LinearSite) -> list[tuple[int, int, int]]:
    """Return round, steps, and steps before, of each plan that a site received."""
    return [(plan.round, plan.local_steps, plan.steps_before) for plan in site.plans]


WHOLE = [(1, 3, 0), (2, 6, 3), (3, 12, 9), (4, 9, 21)]
"""ILE that doubles in each round of a budget of 30 steps."""


def test_ile_doubles_the_steps_and_each_plan_says_how_many_came_before() -> None:
    site = still()
    watcher, _ = run(grid_of(site), ile(30), model(1.0))
    assert orders(site) == WHOLE
    assert {plan.local_epochs for plan in site.plans} == {0}
    assert watcher.positions[-1].work == WorkState(48, used=30, rounds_done=4)


def test_a_repeated_round_keeps_its_place_also_for_a_site_that_missed_it() -> None:
    a, b = still("a"), still("b")
    a.faults = {2: times(3, sends_nan)}
    b.faults = {2: raises}
    run(grid_of(a, b), ile(30), model(1.0), min_sites=1, max_round_retries=3)
    for site in (a, b):
        assert sorted(set(orders(site))) == WHOLE
    assert orders(a).count((2, 6, 3)) == 4


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_resumed_run_gives_the_orders_that_the_whole_run_gave(done: int) -> None:
    watcher, _ = run(grid_of(still()), ile(30), model(1.0), num_rounds=done)
    site = still()
    run(grid_of(site), ile(30), position=watcher.positions[-1])
    assert orders(site) == WHOLE[done:]


def test_a_larger_budget_continues_at_the_place_where_the_smaller_one_ended() -> None:
    watcher, _ = run(grid_of(still()), ile(30), model(1.0))
    site = still()
    run(grid_of(site), ile(100), position=watcher.positions[-1])
    assert orders(site) == [(5, 48, 30), (6, 22, 78)]


def test_spread_divides_a_budget_to_the_step_also_if_it_grows_on_the_way() -> None:
    def spread(budget: int) -> Recipe:
        return in_steps(Spread(budget, 4), Horizon(4, budget))

    site = still()
    watcher, _ = run(grid_of(site), spread(10), model(1.0), num_rounds=2)
    assert orders(site) == [(1, 2, 0), (2, 2, 2)]
    site = still()
    run(grid_of(site), spread(31), position=watcher.positions[-1])
    assert orders(site) == [(3, 13, 4), (4, 14, 17)]


GROWN = [(1, 2, 0), (2, 4, 2), (3, 8, 6), (4, 16, 14), (5, 32, 30)]
"""Rounds that double in a budget of 62 units."""


def annealed(unit: Unit, budget: int = 62) -> Recipe:
    """Return growing rounds with peaks that fall, and momentum in all rounds but the last."""
    return Recipe(
        LrSchedule(0.1, peak_shape="cosine"),
        Growing(2, budget, 5),
        Horizon(5, budget),
        unit=unit,
        outer=Momentum(1.0, 0.5, nesterov=True),
        plain_last=1,
    )


def places(site: LinearSite, unit: Unit) -> list[tuple[int, int, int]]:
    """Return round, length and place of each plan that a site received, in its unit."""
    if unit == "steps":
        return orders(site)
    return [(plan.round, plan.local_parts, plan.parts_before) for plan in site.plans]


@pytest.mark.parametrize("unit", ["steps", "parts"])
def test_growing_rounds_keep_their_places_over_repeats(unit: Unit) -> None:
    site = LinearSite("a")
    site.faults = {3: times(2, sends_nan)}
    run(grid_of(site), annealed(unit), model(1.0), max_round_retries=2)
    assert sorted(set(places(site, unit))) == GROWN
    assert places(site, unit).count(GROWN[2]) > 1


@pytest.mark.parametrize("unit", ["steps", "parts"])
@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_resumed_run_with_growing_rounds_gives_the_bits_of_the_whole_run(
    done: int, unit: Unit
) -> None:
    whole, _ = run(grid_of(LinearSite("a", 0.7)), annealed(unit), model(1.0))
    begun, _ = run(grid_of(LinearSite("a", 0.7)), annealed(unit), model(1.0), num_rounds=done)
    site = LinearSite("a", 0.7)
    resumed, _ = run(grid_of(site), annealed(unit), position=begun.positions[-1])
    assert places(site, unit) == GROWN[done:]
    expected, found = whole.positions[-1], resumed.positions[-1]
    assert found.work == expected.work
    assert found.arrays["w"].tobytes() == expected.arrays["w"].tobytes()


def test_the_plain_last_round_leaves_the_mean_and_no_momentum() -> None:
    watcher, _ = run(grid_of(LinearSite("a", 0.75)), annealed("steps"), model(1.0))
    before, last = watcher.positions[-2], watcher.positions[-1]
    assert set(before.outer_state) == {"steps", "momentum/w"}
    assert not last.outer_state
    # The mean of the only site's model is this model.
    assert float(last.arrays["w"][0]) == float(before.arrays["w"][0]) + 0.75


def test_growing_rounds_of_a_larger_budget_go_on_from_where_they_are() -> None:
    watcher, _ = run(grid_of(still()), annealed("steps"), model(1.0), num_rounds=3)
    site = still()
    run(grid_of(site), annealed("steps", 100), position=watcher.positions[-1])
    (_, fourth, place), last = orders(site)
    assert (place, last) == (14, (5, 86 - fourth, 14 + fourth))
    assert last[1] > fourth > 8


def examples(count: int) -> Fault:
    """Make a site report this number of examples."""

    def fault(request: Message, reply: Message) -> Message:
        reply.content.metric_records[METRICS][NUM_EXAMPLES] = count
        return reply

    return fault


@pytest.mark.parametrize(
    ("counts", "reasons"),
    [
        ([8, 8, 8, 8], {}),  # a data set, of which every round has steps
        ([24, 48, 96, 72], {}),  # a stream with 8 examples in each step
        ([24, 24, 96, 24], {3: "metrics: 'num-examples' is 96, but was 24 before"}),
        ([24, 48, 24, 72], {3: "metrics: 'num-examples' is 24, but was 8 per step before"}),
        ([24, 30, 24, 24], {2: "metrics: 'num-examples' is 30, but was 24 or 8 per step before"}),
    ],
)
def test_a_sites_examples_are_a_fixed_number_or_a_fixed_number_per_step(
    counts: list[int], reasons: dict[int, str]
) -> None:
    a, b = still("a"), still("b")
    b.faults = {number: examples(count) for number, count in enumerate(counts, start=1)}
    watcher, _ = run(grid_of(a, b), ile(30), model(1.0), min_sites=1)
    found = {record.round: record.dropped.get("b") for record in watcher.records}
    assert {number: reason for number, reason in found.items() if reason} == reasons


def test_fixed_steps_end_with_the_budget() -> None:
    site = still()
    run(grid_of(site), in_steps(Fixed(4), Horizon(9, 10)), model(1.0))
    assert orders(site) == [(1, 4, 0), (2, 4, 4), (3, 2, 8)]


def test_a_sites_pace_is_per_step() -> None:
    # A round of 7 steps took 48 s; one of 8 steps may take three times as long for each step.
    a, b = still("a"), still("b")
    grid = grid_of(a, b)
    grid.delays = dict.fromkeys(grid.nodes, 48.0)
    watcher, _ = run(grid, in_steps(Spread(15, 2), Horizon(2, 15)), model(1.0), timeout=0)
    pace = watcher.positions[0].pace
    assert pace == {"a": pytest.approx(48 / 7, rel=0.1), "b": pytest.approx(48 / 7, rel=0.1)}
    assert watcher.records[1].deadline_s == pytest.approx(3 * max(pace.values()) * 8)
