"""The round loop, end to end: sites that do linear arithmetic on a grid in memory."""

import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result
from numpy.typing import NDArray

from strategies.averaging import Arrays, uniform
from strategies.colearning import CoLearning, RoundRecord
from strategies.local_epochs import Fixed, Horizon
from strategies.messages import (
    METRICS,
    NUM_EXAMPLES,
    arrays_to_record,
    record_to_arrays,
    train_reply_content,
)
from strategies.recipes import LrSchedule, Recipe, co_learning, fedavg
from strategies.roster import Roster
from strategies.round_plan import RoundPlan
from tests.strategies.fakes import (
    NODE_IDS,
    FakeGrid,
    Fault,
    LinearSite,
    grid_of,
    raises,
    sends_nan,
    silent,
    train_metrics,
)

A, B, C, _ = NODE_IDS
TIMEOUT_S = 0.05


@dataclass
class Watcher:
    """A `RunObserver` that keeps what it is told, in order."""

    name: str = "watcher"
    told: list[tuple[Any, ...]] = field(default_factory=list)
    records: list[RoundRecord] = field(default_factory=list)
    models: list[dict[str, NDArray[np.generic]]] = field(default_factory=list)
    best: list[bool] = field(default_factory=list)

    def round_started(self, plan: RoundPlan, sites: Iterable[str]) -> None:
        self.told.append((self.name, "started", plan.round, list(sites)))

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        self.told.append((self.name, "answered", round_number, site, reason is None))

    def round_finished(self, record: RoundRecord, arrays: Arrays, is_best: bool) -> None:
        self.told.append((self.name, "finished", record.round))
        self.records.append(record)
        self.models.append({name: array.copy() for name, array in arrays.items()})
        self.best.append(is_best)

    def values(self, name: str = "w") -> list[Any]:
        """Return one array of the global model after each round."""
        return [arrays[name].tolist() for arrays in self.models]


def model(value: float = 0.0) -> ArrayRecord:
    return arrays_to_record({"w": np.array([value], np.float32)})


def strategy_of(recipe: Recipe, *watchers: Watcher, **options: Any) -> CoLearning:
    return CoLearning(
        recipe, Roster(), seed=7, trainable=frozenset({"w"}), observers=watchers, **options
    )


def run(
    grid: FakeGrid, recipe: Recipe, initial: ArrayRecord | None = None, **options: Any
) -> tuple[Watcher, Result]:
    """Run to the end of the recipe, and return what an observer saw, and the result."""
    watcher = Watcher()
    start_options = {
        name: options.pop(name) for name in ("num_rounds", "evaluate_fn") & options.keys()
    }
    strategy = strategy_of(recipe, watcher, **options)
    result = strategy.start(grid, initial or model(), timeout=TIMEOUT_S, **start_options)
    return watcher, result


def two_sites() -> tuple[LinearSite, LinearSite]:
    """Return sites with weights 1 and 3 that add 1 and 3: (1 * 1 + 3 * 3) / 4 = 2.5 a round."""
    return LinearSite("a", step=1.0, num_examples=1), LinearSite("b", step=3.0, num_examples=3)


def three_sites(**faults: Mapping[int, Fault]) -> list[LinearSite]:
    """Return sites a, b and c that add 1, 3 and 5 with weights 1, 3 and 1."""
    return [
        LinearSite("a", 1.0, 1, faults=dict(faults.get("a", {}))),
        LinearSite("b", 3.0, 3, faults=dict(faults.get("b", {}))),
        LinearSite("c", 5.0, 1, faults=dict(faults.get("c", {}))),
    ]


def test_the_golden_trajectory_by_examples() -> None:
    watcher, result = run(grid_of(*two_sites()), fedavg(3, 1, 0.1))
    assert watcher.values() == [[2.5], [5.0], [7.5]]
    assert record_to_arrays(result.arrays)["w"].tolist() == [7.5]


def test_the_golden_trajectory_with_uniform_weights() -> None:
    recipe = Recipe(LrSchedule(0.1), Fixed(1), Horizon(3, None), weighting=uniform)
    watcher, _ = run(grid_of(*two_sites()), recipe)
    assert watcher.values() == [[2.0], [4.0], [6.0]]  # (1 + 3) / 2 = 2 a round


def test_one_site_gets_its_own_model_back() -> None:
    watcher, _ = run(grid_of(LinearSite("only", step=0.5, num_examples=7)), fedavg(3, 1, 0.1))
    assert watcher.values() == [[0.5], [1.0], [1.5]]


def test_a_model_with_scalars_counters_and_several_dtypes_keeps_them() -> None:
    initial: dict[str, NDArray[np.generic]] = {
        "w": np.zeros((2, 3), np.float32),
        "scale": np.zeros((), np.float16),
        "bn.running_mean": np.zeros(4, np.float64),
        "bn.num_batches_tracked": np.array(10),
    }
    watcher, _ = run(grid_of(*two_sites()), fedavg(2, 1, 0.1), arrays_to_record(initial))
    last = watcher.models[-1]
    assert {name: (a.dtype, a.shape) for name, a in last.items()} == {
        name: (a.dtype, a.shape) for name, a in initial.items()
    }
    assert list(last) == list(initial)
    assert np.all(last["w"] == 5.0)
    assert last["scale"] == 5.0
    assert last["bn.running_mean"].tolist() == [5.0] * 4
    assert last["bn.num_batches_tracked"] == 12  # of the first site, which counts 1 a round


def test_the_order_of_arrival_and_the_node_ids_change_no_bit() -> None:
    orders = list(itertools.permutations([A, B, C]))
    seen = set()
    for node_ids, arrival in itertools.product(orders, orders):
        grid = grid_of(
            LinearSite("a", 0.1, 3),
            LinearSite("b", 0.2, 5),
            LinearSite("c", 0.3, 7),
            node_ids=node_ids,
        )
        grid.arrival = list(arrival)
        initial = arrays_to_record({"w": np.linspace(-1, 1, 33)})
        watcher, _ = run(grid, fedavg(2, 1, 0.1), initial)
        seen.add(b"".join(arrays["w"].tobytes() for arrays in watcher.models))
    assert len(seen) == 1


def test_every_site_is_sent_the_same_model_and_the_same_plan() -> None:
    sites = three_sites()
    grid = grid_of(*sites)
    run(grid, fedavg(2, 5, 0.1))
    assert sites[0].plans == sites[1].plans == sites[2].plans
    assert [plan.round for plan in sites[0].plans] == [1, 2]
    assert {(plan.seed, plan.local_epochs, plan.lr_max) for plan in sites[0].plans} == {(7, 5, 0.1)}
    sent = grid.sent_of_type(MessageType.TRAIN)
    assert {message.metadata.group_id for message in sent[:3]} == {"1"}
    assert {message.metadata.group_id for message in sent[3:]} == {"2"}
    assert {message.metadata.ttl for message in sent} == {TIMEOUT_S}


def test_one_bad_site_a_round_is_dropped_by_name_and_the_others_are_averaged_exactly() -> None:
    sites = three_sites(a={1: sends_nan}, b={2: raises}, c={3: silent})
    watcher, _ = run(grid_of(*sites), fedavg(4, 1, 0.1))
    # Without a: (3 * 3 + 1 * 5) / 4 = 3.5. Without b: (1 + 5) / 2 = 3.
    # Without c: (1 * 1 + 3 * 3) / 4 = 2.5. All three: (1 + 9 + 5) / 5 = 3.
    assert watcher.values() == [[3.5], [6.5], [9.0], [12.0]]
    dropped = [record.dropped for record in watcher.records]
    assert [list(reasons) for reasons in dropped] == [["a"], ["b"], ["c"], []]
    assert "'w': 1 of 1 values are not finite" in dropped[0]["a"]
    assert "the disk of this site is full" in dropped[1]["b"]
    assert "no reply within 0.05 s" in dropped[2]["c"]
    took_part = [list(record.participants) for record in watcher.records]
    assert took_part == [["b", "c"], ["a", "c"], ["a", "b"], ["a", "b", "c"]]
    assert not any(record.failed for record in watcher.records)


def test_a_reply_to_the_plan_of_another_round_is_dropped() -> None:
    kept: list[RecordDict] = []

    def keep(request: Message, reply: Message) -> Message:
        kept.append(reply.content)
        return reply

    def send_the_old_one(request: Message, reply: Message) -> Message:
        return Message(kept[0], reply_to=request)

    a, b = two_sites()
    b.faults = {1: keep, 2: send_the_old_one}
    watcher, _ = run(grid_of(a, b), fedavg(2, 1, 0.1))
    assert watcher.values() == [[2.5], [3.5]]  # a alone adds 1
    assert "plan-id" in watcher.records[1].dropped["b"]


def test_a_round_without_a_fit_reply_fails_and_the_run_goes_on_from_the_same_model() -> None:
    a, b = two_sites()
    a.faults, b.faults = {2: sends_nan}, {2: raises}
    evaluated: list[int] = []

    def evaluate(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        evaluated.append(round_number)
        return MetricRecord({"validation-accuracy": float(round_number)})

    watcher, result = run(grid_of(a, b), fedavg(3, 1, 0.1), evaluate_fn=evaluate)
    assert watcher.values() == [[2.5], [2.5], [5.0]]
    failed = watcher.records[1]
    assert [record.failed for record in watcher.records] == [False, True, False]
    assert (failed.relative_change, failed.participants, failed.evaluation) == (None, {}, {})
    assert sorted(failed.dropped) == ["a", "b"]
    assert evaluated == [1, 3]
    assert watcher.best == [True, False, True]
    assert sorted(result.train_metrics_clientapp) == [1, 3]


def test_a_run_in_which_every_round_fails_ends_with_the_model_it_began_with() -> None:
    always: dict[int, Fault] = dict.fromkeys(range(1, 4), sends_nan)
    watcher, result = run(grid_of(LinearSite("a", faults=always)), fedavg(3, 1, 0.1), model(2.0))
    assert [record.failed for record in watcher.records] == [True, True, True]
    assert record_to_arrays(result.arrays)["w"].tolist() == [2.0]


def test_a_failed_round_uses_its_epochs_and_does_not_double_them() -> None:
    site = LinearSite("a", step=0.0, faults={2: sends_nan})
    recipe = co_learning(14, 0.1, initial_epochs=2, epsilon=0.01, max_epochs=8)
    watcher, _ = run(grid_of(site), recipe, model(1.0))
    # The model does not move, so each round that counts doubles: 2, 4 (fails), 4 again, then 8,
    # of which 14 - 2 - 4 - 4 = 4 are left.
    assert [plan.local_epochs for plan in site.plans] == [2, 4, 4, 4]
    assert [record.relative_change for record in watcher.records] == [0.0, None, 0.0, 0.0]


def test_local_epochs_double_in_the_plans_once_the_model_has_settled() -> None:
    # From 10, by 2.5 a round: the changes are 2.5 / 10 = 0.25, 2.5 / 12.5 = 0.2, 2.5 / 15 = 1/6,
    # 2.5 / 17.5 = 1/7 ... With epsilon 0.2 the second is the first to count. The rounds have
    # 1, 1, 2, 4, 4 epochs, the last capped at 4; the 1 that the budget of 13 leaves ends it.
    a, b = two_sites()
    recipe = co_learning(13, 0.1, initial_epochs=1, epsilon=0.2, max_epochs=4)
    watcher, _ = run(grid_of(a, b), recipe, model(10.0))
    assert [plan.local_epochs for plan in a.plans] == [1, 1, 2, 4, 4, 1]
    changes = [record.relative_change for record in watcher.records]
    assert changes == pytest.approx([2.5 / (10 + 2.5 * index) for index in range(6)], rel=1e-12)
    assert sum(plan.local_epochs for plan in a.plans) == 13


def test_only_trainable_parameters_tell_whether_the_model_has_settled() -> None:
    def move_statistics_only(request: Message, reply: Message) -> Message:
        plan = site.plans[-1]
        arrays = {"w": np.array([4.0], np.float32), "mean": np.array([99.0 * plan.round])}
        content = train_reply_content(arrays_to_record(arrays), train_metrics(), plan.plan_id)
        return Message(content, reply_to=request)

    site = LinearSite("a", faults=dict.fromkeys((1, 2), move_statistics_only))
    initial = arrays_to_record({"w": np.array([4.0], np.float32), "mean": np.array([1.0])})
    watcher, _ = run(grid_of(site), fedavg(2, 1, 0.1), initial)
    assert [record.relative_change for record in watcher.records] == [0.0, 0.0]
    assert watcher.values("mean") == [[99.0], [198.0]]


def test_the_epoch_budget_ends_the_run_with_a_shorter_round() -> None:
    a, b = two_sites()
    recipe = Recipe(LrSchedule(0.1), Fixed(4), Horizon(None, 10))
    watcher, _ = run(grid_of(a, b), recipe)
    assert [plan.local_epochs for plan in b.plans] == [4, 4, 2]
    assert len(watcher.records) == 3


@pytest.mark.parametrize(("num_rounds", "rounds"), [(0, 3), (2, 2), (9, 3)])
def test_the_callers_number_of_rounds_is_a_bound_beside_the_recipes(
    num_rounds: int, rounds: int
) -> None:
    watcher, _ = run(grid_of(*two_sites()), fedavg(3, 1, 0.1), num_rounds=num_rounds)
    assert len(watcher.records) == rounds


def test_the_callers_configs_and_initial_model_are_neither_changed_nor_sent() -> None:
    train, evaluate = ConfigRecord({"lr": 9.0, "round": 77}), ConfigRecord({"batch": 3})
    initial = model(1.0)
    a, b = two_sites()
    grid = grid_of(a, b)
    strategy_of(fedavg(2, 1, 0.1), site_evaluation=True).start(
        grid, initial, timeout=TIMEOUT_S, train_config=train, evaluate_config=evaluate
    )
    assert dict(train) == {"lr": 9.0, "round": 77}
    assert dict(evaluate) == {"batch": 3}
    assert record_to_arrays(initial)["w"].tolist() == [1.0]
    assert [(plan.round, plan.lr_max) for plan in a.plans] == [(1, 0.1), (2, 0.1)]
    for message in grid.sent_of_type(MessageType.EVALUATE):
        assert list(message.content.config_records) == []


def test_train_metrics_are_averaged_by_examples() -> None:
    a, b = two_sites()
    a.train_loss, b.train_loss = 4.0, 2.0
    watcher, result = run(grid_of(a, b), fedavg(1, 1, 0.1))
    metrics = result.train_metrics_clientapp[1]
    # (1 * 4 + 3 * 2) / 4 = 2.5; the examples are summed.
    assert (metrics["train-loss"], metrics[NUM_EXAMPLES]) == (2.5, 4)
    participants = watcher.records[0].participants
    assert participants["a"]["train-loss"] == 4.0
    assert participants["b"]["train-loss"] == 2.0


def test_site_evaluation_is_averaged_by_examples() -> None:
    a, b = two_sites()
    (a.loss, a.accuracy), (b.loss, b.accuracy) = (1.0, 0.0), (2.0, 1.0)
    watcher, result = run(grid_of(a, b), fedavg(1, 1, 0.1), site_evaluation=True)
    # (1 * 1 + 3 * 2) / 4 = 1.75 and (1 * 0 + 3 * 1) / 4 = 0.75.
    expected = {NUM_EXAMPLES: 4, "loss": 1.75, "accuracy": 0.75}
    assert watcher.records[0].site_evaluation == expected
    assert dict(result.evaluate_metrics_clientapp[1]) == expected


def test_sites_evaluate_the_new_global_model_of_each_round() -> None:
    a, b = two_sites()
    run(grid_of(a, b), fedavg(2, 1, 0.1), site_evaluation=True)
    assert [arrays["w"].tolist() for arrays in a.evaluated] == [[2.5], [5.0]]
    assert [arrays["w"].tolist() for arrays in b.evaluated] == [[2.5], [5.0]]


def test_sites_evaluate_nothing_unless_told_to() -> None:
    a, b = two_sites()
    watcher, result = run(grid_of(a, b), fedavg(1, 1, 0.1))
    assert a.evaluated == b.evaluated == []
    assert watcher.records[0].site_evaluation == {}
    assert result.evaluate_metrics_clientapp == {}


def spoil_evaluation(request: Message, reply: Message) -> Message:
    reply.content.metric_records[METRICS]["loss"] = math.nan
    return reply


def test_a_bad_evaluation_is_dropped_by_name_and_the_others_are_averaged() -> None:
    a, b = two_sites()
    a.evaluate_fault = spoil_evaluation
    b.loss, b.accuracy = 2.0, 0.5
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1), site_evaluation=True)
    (record,) = watcher.records
    assert record.site_evaluation == {NUM_EXAMPLES: 3, "loss": 2.0, "accuracy": 0.5}
    assert record.dropped == {"a": "evaluation: metrics: 'loss' is nan"}
    assert sorted(record.participants) == ["a", "b"]  # its training still counts


def test_when_no_evaluation_counts_the_round_has_none_and_stands() -> None:
    a, b = two_sites()
    a.evaluate_fault = b.evaluate_fault = spoil_evaluation
    watcher, result = run(grid_of(a, b), fedavg(1, 1, 0.1), site_evaluation=True)
    assert watcher.records[0].site_evaluation == {}
    assert not watcher.records[0].failed
    assert result.evaluate_metrics_clientapp == {}


def test_a_site_that_fails_twice_in_a_round_keeps_both_reasons() -> None:
    a, b = two_sites()
    a.faults, a.evaluate_fault = {1: raises}, spoil_evaluation
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1), site_evaluation=True)
    (record,) = watcher.records
    assert "the disk of this site is full" in record.dropped["a"]
    assert "'loss' is nan" in record.dropped["a"]


def test_observers_are_told_in_order_each_event_to_all_before_the_next() -> None:
    a, b = two_sites()
    b.faults = {1: raises}
    grid = grid_of(a, b)
    grid.arrival = [B, A]
    told: list[tuple[Any, ...]] = []
    first, second = Watcher("first", told), Watcher("second", told)
    strategy_of(fedavg(2, 1, 0.1), first, second).start(grid, model(), timeout=TIMEOUT_S)
    events = [
        ("started", 1, ["a", "b"]),
        ("answered", 1, "b", False),
        ("answered", 1, "a", True),
        ("finished", 1),
        ("started", 2, ["a", "b"]),
        ("answered", 2, "b", True),
        ("answered", 2, "a", True),
        ("finished", 2),
    ]
    assert told == [(name, *event) for event in events for name in ("first", "second")]


def best_flags(metrics: Sequence[dict[str, float] | None]) -> list[bool]:
    """Return whether each round was called best, given its metrics at the coordinator."""

    def evaluate(round_number: int, arrays: ArrayRecord) -> MetricRecord | None:
        found = metrics[round_number - 1]
        return None if found is None else MetricRecord({**found})

    watcher, _ = run(grid_of(*two_sites()), fedavg(len(metrics), 1, 0.1), evaluate_fn=evaluate)
    return watcher.best


def test_the_best_round_is_the_first_with_the_highest_validation_accuracy() -> None:
    scores = [0.5, 0.4, 0.7, 0.7, 0.6, 0.8]
    flags = best_flags([{"validation-accuracy": score} for score in scores])
    assert flags == [True, False, True, False, False, True]


def test_no_other_metric_makes_a_round_the_best() -> None:
    # The test set says the opposite of validation, and must not be listened to.
    metrics = [
        {"validation-accuracy": 0.7, "test-accuracy": 0.1, "validation-loss": 9.0},
        {"validation-accuracy": 0.6, "test-accuracy": 0.9, "validation-loss": 0.1},
    ]
    assert best_flags(metrics) == [True, False]
    assert best_flags([{"test-accuracy": 0.1}, {"test-accuracy": 0.9}]) == [False, False]


def test_a_score_that_is_not_a_number_or_missing_is_never_the_best() -> None:
    scores = [{"validation-accuracy": math.nan}, None, {"validation-accuracy": 0.0}]
    assert best_flags(scores) == [False, False, True]


def test_the_coordinator_evaluates_each_new_model_and_records_what_it_finds() -> None:
    seen: list[tuple[int, list[float]]] = []

    def evaluate(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append((round_number, record_to_arrays(arrays)["w"].tolist()))
        return MetricRecord({"validation-loss": 0.5 * round_number})

    watcher, result = run(grid_of(*two_sites()), fedavg(2, 1, 0.1), evaluate_fn=evaluate)
    assert seen == [(1, [2.5]), (2, [5.0])]
    found = [record.evaluation for record in watcher.records]
    assert found == [{"validation-loss": 0.5}, {"validation-loss": 1.0}]
    assert dict(result.evaluate_metrics_serverapp[2]) == {"validation-loss": 1.0}


def test_a_reply_that_arrives_twice_counts_once() -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a, B: b}, copies=2)
    watcher, _ = run(grid, fedavg(2, 1, 0.1), site_evaluation=True)
    assert watcher.values() == [[2.5], [5.0]]
    assert watcher.records[0].site_evaluation[NUM_EXAMPLES] == 4
    assert sum(event[1] == "answered" for event in watcher.told) == 4


def opened(*sites: LinearSite) -> tuple[CoLearning, Watcher, list[Message]]:
    """Return a strategy with round 1 open, its observer, and the sites' replies."""
    watcher = Watcher()
    strategy = strategy_of(fedavg(1, 1, 0.1), watcher)
    grid = grid_of(*sites)
    messages = list(strategy.configure_train(1, model(), ConfigRecord(), grid))
    ids = list(grid.push_messages(messages))
    return strategy, watcher, list(grid.pull_messages(ids))


def averaged(strategy: CoLearning, replies: Iterable[Message]) -> list[float]:
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return [float(value) for value in record_to_arrays(arrays)["w"]]


def test_of_a_sites_repeated_replies_the_first_is_averaged_once() -> None:
    strategy, watcher, (a, b) = opened(*two_sites())
    assert averaged(strategy, [a, a, b, a]) == [2.5]
    assert [event[3] for event in watcher.told if event[1] == "answered"] == ["a", "b"]


def test_a_reply_of_a_node_that_is_no_site_is_left_out() -> None:
    a, b = two_sites()
    strategy, watcher, replies = opened(a, b)
    stranger = Message(RecordDict(), dst_node_id=C, message_type=MessageType.TRAIN)
    replies.append(Message(replies[0].content, reply_to=stranger))
    assert averaged(strategy, replies) == [2.5]
    assert [event[3] for event in watcher.told if event[1] == "answered"] == ["a", "b"]


def test_replies_to_a_round_that_is_not_open_are_an_error() -> None:
    strategy = strategy_of(fedavg(1, 1, 0.1))
    with pytest.raises(RuntimeError, match="configure_train opens one"):
        strategy.aggregate_train(1, [])


def test_a_restarted_site_takes_part_once_under_its_new_node() -> None:
    a, b = two_sites()
    grid = grid_of(a, b)

    def restart(request: Message, reply: Message) -> Message:
        grid.nodes[C] = LinearSite("b", step=3.0, num_examples=3)  # the old node lingers
        return reply

    b.faults = {1: restart}
    watcher, _ = run(grid, fedavg(2, 1, 0.1))
    assert watcher.values() == [[2.5], [5.0]]
    asked = [message.metadata.dst_node_id for message in grid.sent_of_type(MessageType.TRAIN)]
    assert asked == [A, B, A, C]


def test_a_site_that_goes_offline_is_not_asked_and_is_back_when_it_is_back() -> None:
    a, b = two_sites()
    grid = grid_of(a, b)

    def leave(request: Message, reply: Message) -> Message:
        del grid.nodes[B]
        return reply

    def bring_back(request: Message, reply: Message) -> Message:
        grid.nodes[B] = b
        return reply

    a.faults = {2: bring_back}
    b.faults = {1: leave}
    watcher, _ = run(grid, fedavg(3, 1, 0.1))
    assert watcher.values() == [[2.5], [3.5], [6.0]]  # in round 2, a alone adds 1
    assert [list(record.participants) for record in watcher.records] == [
        ["a", "b"],
        ["a"],
        ["a", "b"],
    ]


def test_the_record_counts_the_bytes_of_every_model_sent_and_received() -> None:
    a, b = two_sites()
    b.faults = {1: sends_nan, 2: raises}
    one = model().count_bytes()
    watcher, _ = run(grid_of(a, b), fedavg(2, 1, 0.1), site_evaluation=True)
    # Sent: to two sites, to train and to evaluate. Received: both models, also the one that was
    # dropped, and only one where the other site sent an error.
    assert [record.sent_bytes for record in watcher.records] == [4 * one, 4 * one]
    assert [record.received_bytes for record in watcher.records] == [2 * one, one]


def test_the_record_holds_the_plan_with_the_id_that_the_sites_saw() -> None:
    a, b = two_sites()
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1))
    (plan,) = a.plans
    assert watcher.records[0].plan == {**plan.model_dump(), "plan_id": plan.plan_id}
    assert watcher.records[0].to_dict()["plan"]["plan_id"] == plan.plan_id


def test_the_record_says_how_long_the_round_took() -> None:
    watcher, _ = run(grid_of(*two_sites()), fedavg(2, 1, 0.1))
    assert all(record.seconds > 0.0 for record in watcher.records)


def test_the_method_is_logged_once_before_the_first_round(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="flwr"):
        run(grid_of(*two_sites()), co_learning(2, 0.1, 1, 0.01, 8))
    messages = [record.getMessage() for record in caplog.records]
    for part in ("LrSchedule(lr_max=0.1", "IncreasedLocalEpochs(initial=1", "Horizon(num_rounds"):
        assert sum(part in message for message in messages) == 1, part


def test_a_run_repeated_is_the_same_in_every_bit_and_every_plan() -> None:
    def once() -> tuple[list[bytes], list[str], list[dict[str, Any]]]:
        sites = three_sites(b={2: sends_nan})
        initial = arrays_to_record({"w": np.linspace(-1, 1, 33, dtype=np.float32) / 3})
        recipe = co_learning(12, 0.1, initial_epochs=1, epsilon=10.0, max_epochs=4)
        watcher, _ = run(grid_of(*sites), recipe, initial)
        records = [record.to_dict() | {"seconds": 0.0} for record in watcher.records]
        models = [arrays["w"].tobytes() for arrays in watcher.models]
        return models, [plan.plan_id for plan in sites[0].plans], records

    assert once() == once()
