"""The round loop, end to end: sites that do linear arithmetic on an in-memory grid."""

import contextlib
import copy
import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import Result
from numpy.typing import NDArray

from strategies.aggregation.averaging import Update, uniform
from strategies.aggregation.outer_optimizers import Adam, Momentum, OuterOptimizer
from strategies.common.errors import DivergedError, EngineError, QuorumError
from strategies.common.files import StorageError
from strategies.exchange.attendance import Awaited
from strategies.exchange.causes import Cause
from strategies.exchange.deadline import Deadline
from strategies.exchange.membership import Membership
from strategies.exchange.messages import (
    METRICS,
    NUM_EXAMPLES,
    NUM_VALIDATION,
    SiteCard,
    arrays_to_record,
    deadline_of,
    record_to_arrays,
    shortened,
    train_reply_content,
)
from strategies.exchange.metrics import (
    TRAIN_METRICS,
    VALIDATION_ACCURACY,
    VALIDATION_LOSS,
    VALIDATION_METRICS,
)
from strategies.exchange.requests import LATE_WINDOW_S
from strategies.exchange.update_store import MemoryUpdates
from strategies.method.local_work import Fixed, Horizon, Spread, WorkState
from strategies.method.recipes import LrSchedule, Recipe, co_learning, diloco, fedavg, qsr
from strategies.method.round_plan import RoundPlan
from strategies.round_loop import RoundLoop
from strategies.storage.model_files import StoredArrays, read_model
from strategies.storage.position import Position
from strategies.storage.recalibrations import Recalibrations
from strategies.storage.round_record import RoundRecord, RunObserver
from strategies.storage.run_directory import BEST_MODEL, GLOBAL_MODEL, run_directory
from strategies.storage.updates import StoredUpdates
from tests.strategies.fakes import (
    NODE_IDS,
    Clock,
    DiedError,
    FakeGrid,
    Fault,
    LinearSite,
    dies_at,
    grid_of,
    raises,
    sends_nan,
    silent,
    times,
    train_metrics,
)

A, B, C, D = NODE_IDS
TIMEOUT_S = 10.0


@dataclass
class Watcher:
    """A `RunObserver` that stores its notifications, in order."""

    name: str = "watcher"
    told: list[tuple[Any, ...]] = field(default_factory=list)
    records: list[RoundRecord] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    retried: list[RoundRecord] = field(default_factory=list)
    failed: list[RoundRecord] = field(default_factory=list)
    awaited: list[Awaited] = field(default_factory=list)

    def sites_awaited(self, awaited: Awaited) -> None:
        self.awaited.append(awaited)

    def round_started(self, plan: RoundPlan, sites: Iterable[str], kept: Iterable[str]) -> None:
        self.told.append((self.name, "started", plan.round, list(sites), list(kept)))

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        self.told.append((self.name, "answered", round_number, site, reason is None))

    def round_retried(self, record: RoundRecord, quorum: int) -> None:
        self.told.append((self.name, "retried", record.round, quorum))
        self.retried.append(copy.deepcopy(record))

    def round_folded(self, record: RoundRecord, position: Position) -> None:
        pass

    def round_finished(self, record: RoundRecord, position: Position) -> None:
        self.told.append((self.name, "finished", record.round))
        self.records.append(record)
        self.positions.append(position)

    def round_failed(self, record: RoundRecord) -> None:
        self.told.append((self.name, "failed", record.round))
        self.failed.append(record)

    @property
    def models(self) -> list[Mapping[str, NDArray[np.generic]]]:
        """Return the global model after each round."""
        return [position.arrays for position in self.positions]

    @property
    def best(self) -> list[bool]:
        """Return whether each round was the best so far."""
        return [position.best_round == position.work.rounds_done for position in self.positions]

    def started(self) -> list[tuple[list[str], list[str]]]:
        """Return, for every attempt, the sites asked and the sites with stored updates."""
        return [(event[3], event[4]) for event in self.told if event[1] == "started"]

    def values(self, name: str = "w") -> list[Any]:
        """Return one array of the global model after each round."""
        return [arrays[name].tolist() for arrays in self.models]


def model(value: float = 0.0) -> ArrayRecord:
    return arrays_to_record({"w": np.array([value], np.float32)})


def strategy_of(recipe: Recipe, *watchers: RunObserver, **options: Any) -> RoundLoop:
    membership = options.pop("membership", Membership())
    return RoundLoop(
        recipe, membership, seed=7, trainable=frozenset({"w"}), observers=watchers, **options
    )


def run(
    grid: FakeGrid, recipe: Recipe, initial: ArrayRecord | None = None, **options: Any
) -> tuple[Watcher, Result]:
    """Run to the end of the recipe; return the observer and the result."""
    watcher = options.pop("watcher", None) or Watcher()
    started = {"timeout": TIMEOUT_S} | {
        name: options.pop(name)
        for name in ("num_rounds", "evaluate_fn", "timeout")
        if name in options
    }
    result = strategy_of(recipe, watcher, **options).start(grid, initial or model(), **started)
    return watcher, result


def stopped(grid: FakeGrid, recipe: Recipe, **options: Any) -> tuple[Watcher, QuorumError]:
    """Run until the run stops with too few updates; return the observer and the error."""
    watcher = Watcher()
    with pytest.raises(QuorumError) as caught:
        run(grid, recipe, watcher=watcher, **options)
    return watcher, caught.value


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


def test_the_golden_trajectory_with_an_outer_optimizer() -> None:
    # The mean is 2.5 ahead: g = -2.5; b = -2.5, -3.75, -4.375; w = 2 * (2.5, + 3.75, + 4.375).
    recipe = replace(fedavg(3, 1, 0.1), outer=Momentum(2.0, 0.5))
    watcher, _ = run(grid_of(*two_sites()), recipe)
    assert watcher.values() == [[5.0], [12.5], [21.25]]
    states = [position.outer_state for position in watcher.positions]
    assert [state["momentum/w"].tolist() for state in states] == [[-2.5], [-3.75], [-4.375]]
    # 12.5 lies 7.5 from 5: what a round has changed is measured after the outer optimizer.
    assert watcher.records[1].relative_change == 1.5


def test_an_outer_optimizer_leaves_what_is_not_trainable_to_the_mean() -> None:
    initial = arrays_to_record({"w": np.zeros(1), "mean": np.zeros(1)})
    recipe = replace(fedavg(2, 1, 0.1), outer=Momentum(2.0, 0.0))
    watcher, _ = run(grid_of(*two_sites()), recipe, initial)
    assert (watcher.values("w"), watcher.values("mean")) == ([[5.0], [10.0]], [[2.5], [5.0]])


def test_a_round_that_is_repeated_is_one_step_of_the_outer_optimizer() -> None:
    a, b = two_sites()
    a.faults = {1: times(2, sends_nan)}
    recipe = replace(fedavg(2, 1, 0.1), outer=Momentum(2.0, 0.5))
    watcher, _ = run(grid_of(a, b), recipe, min_sites=2)
    assert [record.attempts for record in watcher.records] == [2, 1]
    assert watcher.values() == [[5.0], [12.5]]
    assert watcher.positions[-1].outer_state["steps"] == 2


def test_one_site_gets_its_own_model_back() -> None:
    watcher, _ = run(grid_of(LinearSite("only", step=0.5, num_examples=7)), fedavg(3, 1, 0.1))
    assert watcher.values() == [[0.5], [1.0], [1.5]]


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_model_with_scalars_counters_and_several_dtypes_keeps_them_and_their_order(
    tmp_path: Path, on_disk: bool
) -> None:
    initial: dict[str, NDArray[np.generic]] = {
        "w": np.zeros((2, 3), np.float32),
        "scale": np.zeros((), np.float16),
        "bn.running_mean": np.zeros(4, np.float64),
        "bn.num_batches_tracked": np.array(10),
    }
    store = StoredUpdates(tmp_path) if on_disk else MemoryUpdates()
    start = arrays_to_record(initial)
    watcher, _ = run(grid_of(*two_sites()), fedavg(2, 1, 0.1), start, updates=store)
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
    # Longer than it is waited for, so that a late reply is seen as late.
    assert {message.metadata.ttl for message in sent} == {TIMEOUT_S + LATE_WINDOW_S}
    assert {deadline_of(message.content) for message in sent} == {TIMEOUT_S}


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
    assert "no reply within 10 s" in dropped[2]["c"]
    assert [record.causes for record in watcher.records] == [
        {"a": Cause.NOT_FINITE},
        {"b": Cause.SITE_FAILED},
        {"c": Cause.NO_REPLY},
        {},
    ]
    took_part = [list(record.participants) for record in watcher.records]
    assert took_part == [["b", "c"], ["a", "c"], ["a", "b"], ["a", "b", "c"]]
    assert not any(record.failed for record in watcher.records)


def test_a_round_says_what_each_site_that_took_part_computes_with() -> None:
    sites = three_sites(c={1: silent})
    sites[0].device, sites[2].device = "NVIDIA H100", "EPYC"
    watcher, _ = run(grid_of(*sites), fedavg(2, 1, 0.1))
    first = {"a": "NVIDIA H100, bfloat16, 8 threads"}
    second = first | {"c": "EPYC, bfloat16, 8 threads"}
    assert [record.machines for record in watcher.records] == [first, second]


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


def test_training_metrics_are_averaged_over_the_sites_that_share_them() -> None:
    a, b, c = three_sites()
    a.train_loss, b.train_loss, c.train_loss = 4.0, 2.0, 100.0
    a.withheld, c.withheld = {"num-steps"}, {"train-loss", "num-steps", "train-seconds"}
    b.withheld = {"num-steps"}
    watcher, result = run(grid_of(a, b, c), fedavg(1, 1, 0.1))
    metrics = dict(result.train_metrics_clientapp[1])
    # c, which has one example of five, keeps its loss back: (1 * 4 + 3 * 2) / 4 = 2.5.
    assert (metrics["train-loss"], metrics[NUM_EXAMPLES]) == (2.5, 5)
    assert "num-steps" not in metrics
    assert set(watcher.records[0].participants["c"]) == {NUM_EXAMPLES, "train-accuracy"}
    # The model is that of all of them: (1 * 1 + 3 * 3 + 1 * 5) / 5 = 3.
    assert watcher.values() == [[3.0]]


def test_where_every_metric_is_kept_back_only_the_examples_are_left() -> None:
    a, b = two_sites()
    a.withheld = b.withheld = TRAIN_METRICS - {NUM_EXAMPLES}
    watcher, result = run(grid_of(a, b), fedavg(2, 1, 0.1), site_evaluation=True)
    assert dict(result.train_metrics_clientapp[2]) == {NUM_EXAMPLES: 4}
    assert watcher.values() == [[2.5], [5.0]]
    for record in watcher.records:
        assert record.start_evaluation == record.site_evaluation == {}
        assert record.dropped == {}
    assert watcher.positions[-1].best_round == 0


def test_site_evaluation_is_averaged_by_validation_examples() -> None:
    a, b = two_sites()
    a.num_validation, b.num_validation = 6, 2
    a.loss, b.loss = 1.0, 2.0
    a.accuracy, b.accuracy = lambda w: 0.0, lambda w: 1.0
    watcher, result = run(grid_of(a, b), fedavg(1, 1, 0.1), site_evaluation=True)
    # (6 * 1 + 2 * 2) / 8 = 1.25 and (6 * 0 + 2 * 1) / 8 = 0.25, before training and after it.
    expected = {NUM_VALIDATION: 8, VALIDATION_LOSS: 1.25, VALIDATION_ACCURACY: 0.25}
    assert watcher.records[0].start_evaluation == expected
    assert watcher.records[0].site_evaluation == expected
    assert dict(result.evaluate_metrics_clientapp[1]) == expected
    # It is no metric of the training.
    assert not set(result.train_metrics_clientapp[1]) & VALIDATION_METRICS


def test_sites_evaluate_the_model_they_are_sent_and_the_last_one_once_more() -> None:
    a, b = two_sites()
    grid = grid_of(a, b)
    a.accuracy = b.accuracy = lambda w: w / 10
    watcher, result = run(grid, fedavg(3, 1, 0.1), site_evaluation=True)
    for site in (a, b):
        assert [arrays["w"].tolist() for arrays in site.evaluated] == [[0.0], [2.5], [5.0], [7.5]]
    assert len(grid.sent_of_type(MessageType.TRAIN)) == 2 * 3
    assert len(grid.sent_of_type(MessageType.EVALUATE)) == 2
    scores = [record.start_evaluation[VALIDATION_ACCURACY] for record in watcher.records]
    assert scores == [0.0, 0.25, 0.5]
    after = [record.site_evaluation.get(VALIDATION_ACCURACY) for record in watcher.records]
    assert after == [None, None, 0.75]
    assert list(result.evaluate_metrics_clientapp) == [3]


# 3 rounds of the recipe; 2 of the caller's; a budget of 5 epochs in rounds of 2, 2 and 1.
@pytest.mark.parametrize(
    ("recipe", "num_rounds", "last"),
    [
        (fedavg(3, 1, 0.1), 0, 3),
        (fedavg(3, 1, 0.1), 2, 2),
        (Recipe(LrSchedule(0.1), Fixed(2), Horizon(None, 5)), 0, 3),
    ],
    ids=["recipe", "caller", "budget"],
)
def test_whatever_ends_the_run_the_last_model_is_evaluated_once(
    recipe: Recipe, num_rounds: int, last: int
) -> None:
    a, b = two_sites()
    grid = grid_of(a, b)
    watcher, _ = run(grid, recipe, site_evaluation=True, num_rounds=num_rounds)
    assert [bool(record.site_evaluation) for record in watcher.records] == [
        number == last for number in range(1, last + 1)
    ]
    assert len(grid.sent_of_type(MessageType.EVALUATE)) == 2
    assert a.evaluated[-1]["w"].tolist() == watcher.values()[-1]


def test_a_run_that_goes_on_after_its_end_evaluates_its_last_model_again_only_at_the_new_end() -> (
    None
):
    first, _ = run(grid_of(*two_sites()), fedavg(2, 1, 0.1), site_evaluation=True)
    grid = grid_of(*two_sites())
    recipe, position = fedavg(3, 1, 0.1), first.positions[-1]
    second, _ = run(grid, recipe, site_evaluation=True, position=position)
    assert len(grid.sent_of_type(MessageType.EVALUATE)) == 2
    assert [record.round for record in second.records if record.site_evaluation] == [3]
    # And not at all where nothing was left to do.
    grid = grid_of(*two_sites())
    run(grid, recipe, site_evaluation=True, position=second.positions[-1])
    assert grid.sent == []


def test_what_the_sites_evaluate_changes_no_bit_of_the_model() -> None:
    initial = arrays_to_record({"w": np.linspace(-1, 1, 33, dtype=np.float32) / 3})
    recipe = co_learning(15, 0.1, initial_epochs=1, epsilon=10.0, max_epochs=8)
    models, plans = [], []
    for site_evaluation in (False, True):
        sites = LinearSite("a", 0.1, 3), LinearSite("b", 0.2, 5)
        watcher, _ = run(grid_of(*sites), recipe, initial, site_evaluation=site_evaluation)
        models.append([arrays["w"].tobytes() for arrays in watcher.models])
        plans.append([record.plan["plan_id"] for record in watcher.records])
    assert models[0] == models[1]
    assert plans[0] == plans[1]


def test_a_site_whose_update_does_not_count_has_no_say_in_the_evaluation() -> None:
    a, b = two_sites()
    b.faults = {1: sends_nan}
    a.accuracy, b.accuracy = lambda w: 0.25, lambda w: 0.75
    watcher, _ = run(grid_of(a, b), fedavg(2, 1, 0.1), site_evaluation=True)
    assert [record.start_evaluation for record in watcher.records] == [
        {NUM_VALIDATION: 1, VALIDATION_LOSS: 1.0, VALIDATION_ACCURACY: 0.25},
        # (1 * 0.25 + 3 * 0.75) / 4 = 0.625
        {NUM_VALIDATION: 4, VALIDATION_LOSS: 1.0, VALIDATION_ACCURACY: 0.625},
    ]


def test_validation_metrics_are_averaged_over_the_sites_that_share_them() -> None:
    a, b, c = three_sites()
    a.accuracy, b.accuracy, c.accuracy = lambda w: 0.5, lambda w: 0.75, lambda w: 1.0
    a.withheld, c.withheld = {VALIDATION_LOSS}, {NUM_VALIDATION}
    watcher, _ = run(grid_of(a, b, c), fedavg(1, 1, 0.1), site_evaluation=True)
    # a and b, of 1 and 3 examples; without its number, c's accuracy cannot be weighed:
    # (0.5 + 3 * 0.75) / 4 = 0.6875.
    expected = {NUM_VALIDATION: 4, VALIDATION_LOSS: 1.0, VALIDATION_ACCURACY: 0.6875}
    assert watcher.records[0].start_evaluation == expected
    assert watcher.records[0].site_evaluation == expected


def test_the_evaluations_of_kept_updates_count_in_a_round_that_is_repeated() -> None:
    a, b = two_sites()
    a.accuracy, b.accuracy = lambda w: 0.25, lambda w: 0.75
    b.faults = {1: times(2, raises)}
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1), site_evaluation=True, min_sites=2)
    assert (watcher.records[0].attempts, len(a.plans)) == (2, 1)
    assert watcher.records[0].start_evaluation[VALIDATION_ACCURACY] == 0.625


def test_sites_evaluate_nothing_unless_told_to() -> None:
    a, b = two_sites()
    watcher, result = run(grid_of(a, b), fedavg(1, 1, 0.1))
    assert a.evaluated == b.evaluated == []
    assert watcher.records[0].start_evaluation == watcher.records[0].site_evaluation == {}
    assert result.evaluate_metrics_clientapp == {}


def spoil_evaluation(request: Message, reply: Message) -> Message:
    reply.content.metric_records[METRICS][VALIDATION_LOSS] = math.nan
    return reply


def test_a_bad_evaluation_is_dropped_by_name_and_the_others_are_averaged() -> None:
    a, b = two_sites()
    a.evaluate_fault = spoil_evaluation
    b.loss, b.accuracy = 2.0, lambda w: 0.5
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1), site_evaluation=True)
    (record,) = watcher.records
    expected = {NUM_VALIDATION: 3, VALIDATION_LOSS: 2.0, VALIDATION_ACCURACY: 0.5}
    assert record.site_evaluation == expected
    assert record.dropped == {"a": "evaluation: metrics: 'validation-loss' is nan"}
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
    assert "'validation-loss' is nan" in record.dropped["a"]


def test_observers_are_told_in_order_each_event_to_all_before_the_next() -> None:
    a, b = two_sites()
    b.faults = {1: times(1, raises)}
    grid = FakeGrid({A: a, B: b}, delays={A: 1.0, B: 0.5})
    told: list[tuple[Any, ...]] = []
    first, second = Watcher("first", told), Watcher("second", told)
    strategy_of(fedavg(2, 1, 0.1), first, second).start(grid, model(), timeout=TIMEOUT_S)
    events = [
        ("started", 1, ["a", "b"], []),
        ("answered", 1, "b", False),
        ("answered", 1, "a", True),
        ("answered", 1, "b", True),
        ("finished", 1),
        ("started", 2, ["a", "b"], []),
        ("answered", 2, "b", True),
        ("answered", 2, "a", True),
        ("finished", 2),
    ]
    assert told == [(name, *event) for event in events for name in ("first", "second")]


def best_flags(metrics: Sequence[dict[str, float] | None]) -> list[bool]:
    """Return whether each round was the best so far, given its metrics at the coordinator."""

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


def chosen_by_sites(scores: Sequence[float], **options: Any) -> Watcher:
    """Run with these scores, given by the sites to the models 0, 1, 2, ..."""
    # The model is 2.5 * number.
    a, b = two_sites()
    a.accuracy = b.accuracy = lambda w: scores[round(w / 2.5)]
    recipe = fedavg(len(scores) - 1, 1, 0.1)
    watcher, _ = run(grid_of(a, b), recipe, site_evaluation=True, **options)
    return watcher


# A model's score comes one round after it, the last one's with it. That of the initial model, 0.9,
# is of no account, nor is an equal one that comes later.
@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.9, 0.5], [1]),
        ([0.9, 0.5, 0.4], [0, 1]),
        ([0.9, 0.5, 0.6], [0, 2]),
        ([0.9, 0.5, 0.4, 0.7, 0.7, 0.6, 0.8], [0, 1, 1, 3, 3, 6]),
        ([0.9, 0.0, 0.0], [0, 1]),
    ],
)
def test_without_the_coordinators_score_the_sites_choose_the_best_model(
    scores: list[float], best: list[int]
) -> None:
    positions = chosen_by_sites(scores).positions
    assert [position.best_round for position in positions] == best
    assert positions[-1].best_score == scores[best[-1]]


def test_the_coordinators_score_goes_before_the_sites() -> None:
    def evaluate(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"validation-accuracy": [0.2, 0.1, 0.1][round_number - 1]})

    watcher = chosen_by_sites([0.9, 0.5, 0.6, 0.7], evaluate_fn=evaluate)
    assert [position.best_round for position in watcher.positions] == [1, 1, 1]
    assert watcher.positions[-1].best_score == 0.2


def test_the_score_of_the_model_that_a_resume_starts_from_is_that_of_its_round() -> None:
    scores = [0.9, 0.5, 0.4, 0.7, 0.6]
    whole = chosen_by_sites(scores)
    for rounds_done in (1, 2, 3):
        rest = chosen_by_sites(scores, position=whole.positions[rounds_done - 1])
        best = [position.best_round for position in rest.positions]
        assert best == [position.best_round for position in whole.positions][rounds_done:]


def test_a_model_that_was_scored_at_an_end_is_not_better_for_being_scored_again() -> None:
    first = chosen_by_sites([0.9, 0.5, 0.7])
    second = chosen_by_sites([0.9, 0.5, 0.7, 0.6], position=first.positions[-1])
    assert [position.best_round for position in second.positions] == [2]


@pytest.mark.parametrize(
    "scores", [[0.9, 0.3, 0.5, 0.4], [0.9, 0.5, 0.3, 0.4], [0.9, 0.3, 0.4, 0.5]]
)
@pytest.mark.parametrize("stop_after", [1, 2, None])
@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_models_file_is_that_of_its_round_also_over_a_resume(
    tmp_path: Path, scores: list[float], stop_after: int | None, keep: int
) -> None:
    """The coordinator dies after a round; another one resumes in the same directory."""

    @dataclass
    class Dies(Watcher):
        def round_finished(self, record: RoundRecord, position: Position) -> None:
            super().round_finished(record, position)
            if record.round == stop_after:
                raise DiedError

    initial = record_to_arrays(model())
    for _ in range(2 if stop_after else 1):
        with run_directory(tmp_path, {}, resume=True, keep_checkpoints=keep) as directory:
            position = directory.begin(initial, Position(initial, Fixed(1).start()), {})
            a, b = two_sites()
            a.accuracy = b.accuracy = lambda w: scores[round(w / 2.5)]
            resumed = position.work.rounds_done > 0
            watchers: list[Any] = [directory] if resumed else [directory, Dies()]
            options = {"position": position, "updates": directory.updates}
            strategy = strategy_of(fedavg(3, 1, 0.1), *watchers, site_evaluation=True, **options)
            with contextlib.suppress(DiedError):
                strategy.start(grid_of(a, b), arrays_to_record(position.arrays), timeout=TIMEOUT_S)
    best = max(range(1, 4), key=lambda number: scores[number])
    arrays, _ = read_model(tmp_path / BEST_MODEL)
    assert arrays["w"].tolist() == [2.5 * best]
    arrays, _ = read_model(tmp_path / GLOBAL_MODEL)
    assert arrays["w"].tolist() == [7.5]


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
    assert watcher.records[1].start_evaluation[NUM_VALIDATION] == 4
    assert watcher.records[1].site_evaluation[NUM_VALIDATION] == 4
    assert sum(event[1] == "answered" for event in watcher.told) == 4


def opened(*sites: LinearSite) -> tuple[RoundLoop, Watcher, list[Message]]:
    """Return a strategy with round 1 open, its observer, and the sites' replies."""
    watcher = Watcher()
    strategy = strategy_of(fedavg(1, 1, 0.1), watcher)
    grid = grid_of(*sites)
    messages = list(strategy.configure_train(1, model(), ConfigRecord(), grid))
    ids = list(grid.push_messages(messages))
    return strategy, watcher, list(grid.pull_messages(ids))


def averaged(strategy: RoundLoop, replies: Iterable[Message]) -> list[float]:
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
    with pytest.raises(RuntimeError, match="call configure_train first"):
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
    assert [record.missing for record in watcher.records] == [[], ["b"], []]
    assert [record.dropped for record in watcher.records] == [{}, {}, {}]


def test_the_record_counts_the_bytes_of_every_model_sent_and_received() -> None:
    a, b = two_sites()
    b.faults = {1: sends_nan, 2: raises}
    one = model().count_bytes()
    watcher, _ = run(grid_of(a, b), fedavg(2, 1, 0.1), site_evaluation=True)
    # Sent: to two sites to train, once more to the one that failed, and in the end to two sites
    # to evaluate. Received: both models, and the one that was dropped; only one where there
    # were errors.
    assert [record.sent_bytes for record in watcher.records] == [3 * one, 5 * one]
    assert [record.received_bytes for record in watcher.records] == [3 * one, one]


def test_the_record_holds_the_plan_with_the_id_that_the_sites_saw() -> None:
    a, b = two_sites()
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1))
    (plan,) = a.plans
    assert watcher.records[0].plan == {**plan.model_dump(), "plan_id": plan.plan_id}
    assert watcher.records[0].to_dict()["plan"]["plan_id"] == plan.plan_id


def test_the_record_says_how_long_the_round_took() -> None:
    a, b = two_sites()
    watcher, _ = run(FakeGrid({A: a, B: b}, delays={B: 3.0}), fedavg(2, 1, 0.1))
    assert [record.seconds for record in watcher.records] == pytest.approx([3, 3], abs=0.1)


def test_the_method_is_logged_once_before_the_first_round(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="flwr"):
        run(grid_of(*two_sites()), co_learning(2, 0.1, 1, 0.01, 8))
    messages = [record.getMessage() for record in caplog.records]
    for part in (
        "LrSchedule(lr_max=0.1",
        "IncreasedLocalEpochs(initial=1",
        "Average()",
        "Horizon(num_rounds",
    ):
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


def test_a_site_whose_reply_is_unfit_is_asked_once_more_and_may_still_count() -> None:
    a, b = two_sites()
    b.faults = {1: times(1, raises)}
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1))
    (record,) = watcher.records
    assert watcher.values() == [[2.5]]
    assert (record.dropped, record.asked_again, record.attempts) == ({}, ["b"], 1)
    assert record.errors == {"b": "the disk of this site is full"}
    assert b.plans[0] == b.plans[1]
    assert len(a.plans) == 1


def test_a_site_that_fails_twice_is_not_asked_a_third_time() -> None:
    a, b = two_sites()
    b.faults = {1: raises}
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1))
    assert (len(a.plans), len(b.plans)) == (1, 2)
    assert list(watcher.records[0].dropped) == ["b"]


def test_a_site_that_is_restarted_in_a_round_is_asked_under_its_new_node(clock: Clock) -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a, B: b}, delays={A: 1.0, B: 8.0})
    again = LinearSite("b", step=3.0, num_examples=3)
    clock.after(2.0, lambda: grid.stop(B))
    clock.after(4.0, lambda: grid.nodes.update({C: again}))
    watcher, _ = run(grid, fedavg(1, 1, 0.1))
    (record,) = watcher.records
    assert watcher.values() == [[2.5]]
    assert (record.dropped, record.asked_again) == ({}, ["b"])
    assert len(again.plans) == 1
    assert record.seconds < TIMEOUT_S  # it came back at 4 s, and was found at the next look


@pytest.mark.parametrize(("old_s", "new_s"), [(9.0, 50.0), (50.0, 4.0)])
def test_where_a_site_is_there_twice_its_first_reply_ends_the_wait_for_it(
    clock: Clock, old_s: float, new_s: float
) -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a, B: b}, delays={A: 1.0, B: old_s, C: new_s})
    again = LinearSite("b", step=3.0, num_examples=3)
    clock.after(2.0, lambda: grid.nodes.update({C: again}))
    watcher, _ = run(grid, fedavg(1, 1, 0.1), timeout=100.0)
    (record,) = watcher.records
    assert watcher.values() == [[2.5]]
    assert (record.dropped, record.late, record.asked_again) == ({}, {}, ["b"])
    assert record.seconds == pytest.approx(9.0, abs=0.5)  # the new one is found at 5 s
    assert watcher.told.count(("watcher", "answered", 1, "b", True)) == 1


def test_a_site_that_is_asked_again_is_told_only_what_is_left_of_the_deadline() -> None:
    a, b = two_sites()
    b.faults = {1: times(1, raises)}
    grid = FakeGrid({A: a, B: b}, delays={B: 4.0})
    run(grid, fedavg(1, 1, 0.1))
    told = [deadline_of(message.content) for message in grid.sent_of_type(MessageType.TRAIN)]
    assert told == pytest.approx([TIMEOUT_S, TIMEOUT_S, TIMEOUT_S - 4.0], abs=0.2)


def test_the_time_that_training_took_is_not_taken_from_evaluation() -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a, B: b}, delays={B: 9.0})
    run(grid, fedavg(1, 1, 0.1), site_evaluation=True)
    lives = {message.metadata.ttl for message in grid.sent_of_type(MessageType.EVALUATE)}
    assert lives == {TIMEOUT_S + LATE_WINDOW_S}


def test_a_restarted_site_whose_app_is_slow_to_start_is_asked_in_the_round(clock: Clock) -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a, B: b}, delays={A: 80.0, B: 90.0}, hello_delays={C: 20.0})
    clock.after(10.0, lambda: grid.stop(B))
    clock.after(12.0, lambda: grid.nodes.update({C: LinearSite("b", 3.0, 3)}))
    watcher, _ = run(grid, fedavg(1, 1, 0.1), timeout=100.0)
    assert watcher.values() == [[2.5]]
    assert watcher.records[0].asked_again == ["b"]
    assert watcher.records[0].seconds == pytest.approx(80.0, abs=1.1)


def test_once_in_each_attempt_is_asked_again_too_and_a_new_round_counts_anew() -> None:
    a, b, c = three_sites(c={1: times(1, silent)})
    watcher, _ = run(grid_of(a, b, c), fedavg(2, 1, 0.1), min_sites=3)
    assert [plan.round for plan in c.plans] == [1, 1, 2]
    assert [record.asked_again for record in watcher.records] == [["c"], []]


def test_a_site_that_comes_for_the_first_time_in_a_round_takes_part_in_it(clock: Clock) -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a}, delays={A: 8.0})
    clock.after(2.0, lambda: grid.nodes.update({B: b}))
    watcher, _ = run(grid, fedavg(1, 1, 0.1))
    assert watcher.values() == [[2.5]]
    assert watcher.records[0].asked_again == []


def test_below_the_quorum_the_round_is_repeated_with_only_the_sites_that_are_missing() -> None:
    a, b, c = three_sites(a={1: times(1, raises)}, c={1: times(3, raises)})
    watcher, _ = run(grid_of(a, b, c), fedavg(2, 1, 0.1), min_sites=3)
    assert watcher.values() == [[3.0], [6.0]]  # all three: (1 + 9 + 5) / 5 = 3
    assert watcher.started() == [
        (["a", "b", "c"], []),
        (["c"], ["a", "b"]),
        (["a", "b", "c"], []),
    ]
    # Twice in the first attempt, twice in the second; and then round 2.
    assert [plan.round for plan in c.plans] == [1, 1, 1, 1, 2]
    assert len({plan.plan_id for plan in c.plans}) == 2
    assert [len(site.plans) for site in (a, b)] == [3, 2]
    (retried,) = watcher.retried
    assert (retried.failed, list(retried.participants)) == (True, ["a", "b"])
    assert list(retried.dropped) == ["c"]
    record = watcher.records[0]
    assert (record.attempts, record.failed, record.dropped) == (2, False, {})
    assert (retried.causes, record.causes) == ({"c": Cause.SITE_FAILED}, {})
    assert record.asked_again == ["a", "c"]
    assert list(record.participants) == ["a", "b", "c"]
    assert [event[1:] for event in watcher.told if event[1] == "retried"] == [("retried", 1, 3)]


def test_a_repeated_round_costs_no_epochs_of_the_budget() -> None:
    site = LinearSite("a", step=0.0, faults={2: times(3, sends_nan)})
    recipe = co_learning(14, 0.1, initial_epochs=2, epsilon=0.01, max_epochs=8)
    watcher, _ = run(grid_of(site), recipe, model(1.0))
    # The model does not move, so each round doubles: 2, 4, then 8, all of the 14.
    assert [plan.local_epochs for plan in site.plans] == [2, 4, 4, 4, 4, 8]
    assert [record.plan["local_epochs"] for record in watcher.records] == [2, 4, 8]
    assert watcher.positions[-1].work == WorkState(8, used=14, rounds_done=3)


def test_a_round_that_fails_as_often_as_it_may_be_tried_stops_the_run() -> None:
    sites = three_sites(c={2: raises})
    watcher, error = stopped(grid_of(*sites), fedavg(3, 1, 0.1), min_sites=3, max_round_retries=1)
    assert error.exit_code == 3
    assert (error.where, error.got, error.expected) == ("min-sites", 2, "3 or more")
    assert error.causes == {"c": Cause.SITE_FAILED}
    assert "round 2 has too few updates, after 2 attempts" in str(error)
    assert "c: the site failed: the disk of this site is full" in error.hint
    assert watcher.values() == [[3.0]]  # of round 1
    assert [event[1:3] for event in watcher.told][-1] == ("failed", 2)
    (failed,) = watcher.failed
    assert (failed.failed, failed.attempts, failed.relative_change) == (True, 2, None)
    assert list(failed.participants) == ["a", "b"]
    assert len(watcher.retried) == 1
    assert len(sites[2].plans) == 1 + 2 * 2


def test_without_retries_the_first_failed_attempt_stops_the_run() -> None:
    a, b = two_sites()
    b.faults = {1: raises}
    watcher, error = stopped(grid_of(a, b), fedavg(3, 1, 0.1), min_sites=2, max_round_retries=0)
    assert "after 1 attempt (" in str(error)
    assert watcher.retried == []
    assert len(watcher.failed) == 1


def test_a_failed_round_is_not_evaluated() -> None:
    a, b = two_sites()
    b.faults = {2: times(2, raises)}
    evaluated: list[int] = []

    def evaluate(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        evaluated.append(round_number)
        return MetricRecord({"validation-accuracy": 0.5})

    run(grid_of(a, b), fedavg(2, 1, 0.1), evaluate_fn=evaluate, min_sites=2, site_evaluation=True)
    assert evaluated == [1, 2]
    assert [arrays["w"].tolist() for arrays in a.evaluated] == [[0.0], [2.5], [5.0]]


RAY_DIED = Error(ErrorCode.UNKNOWN, "<class 'ray.exceptions.ActorDiedError'>:<'The actor died'>\n")


def dies(request: Message, reply: Message) -> Message:
    return Message(RAY_DIED, reply_to=request)


def test_when_a_worker_of_the_simulation_died_the_run_ends_with_what_it_has() -> None:
    store, watcher = MemoryUpdates(), Watcher()
    sites = three_sites(b={1: dies})
    for site in sites:
        site.simulated = True
    grid = grid_of(*sites)
    grid.arrival = [A, B, C]
    with pytest.raises(EngineError, match="a worker of the simulation died") as caught:
        run(grid, fedavg(1, 1, 0.1), watcher=watcher, updates=store)
    assert caught.value.where == "round 1, b"
    assert "ActorDiedError" in str(caught.value.got)
    assert store.sites() == ["a"]
    assert watcher.records == watcher.failed == []


def test_a_real_site_cannot_end_the_run_by_saying_that_a_worker_died() -> None:
    sites = three_sites(b={1: dies})
    sites[1].simulated = True  # nor by saying that it is simulated
    watcher, _ = run(grid_of(*sites), fedavg(1, 1, 0.1))
    assert "ActorDiedError" in watcher.records[0].dropped["b"]
    assert list(watcher.records[0].participants) == ["a", "c"]


def test_an_update_that_is_too_far_from_the_global_model_is_dropped() -> None:
    a, b = two_sites()
    b.step = 100.0
    # From 10 to 11 is 0.1 times the model's norm, from 10 to 110 is 10 times.
    watcher, _ = run(grid_of(a, b), fedavg(1, 1, 0.1), model(10.0), max_relative_update=0.5)
    assert watcher.values() == [[11.0]]
    assert "max-relative-update is 0.5" in watcher.records[0].dropped["b"]
    unbounded, _ = run(grid_of(*two_sites()), fedavg(1, 1, 0.1), model(10.0))
    assert unbounded.records[0].dropped == {}


def test_a_global_model_that_overflows_ends_the_run_before_its_checkpoint(tmp_path: Path) -> None:
    # Round 1 moves 0 by 1 * 2e38, round 2 by momentum alone: to 2e38 + 0.9 * 2e38 > 3.4e38.
    recipe = replace(fedavg(4, 1, 0.1), outer=Momentum(lr=2e38, momentum=0.9))
    watcher = Watcher()
    start = Position({"w": np.zeros(1, np.float32)}, WorkState(1))
    with run_directory(tmp_path, {}) as directory:
        directory.begin(start.arrays, start, {})
        strategy = strategy_of(recipe, watcher, directory)
        with pytest.raises(DivergedError) as caught:
            strategy.start(grid_of(LinearSite("a")), model())
    assert caught.value.exit_code == 2
    assert caught.value.where.startswith("round 2, Momentum(lr=2e+38")
    assert "array 'w': 1 of 1 values are not finite" in str(caught.value)
    (failed,) = watcher.failed
    assert (failed.round, failed.failed, failed.dropped) == (2, True, {})
    arrays, _ = read_model(tmp_path / GLOBAL_MODEL)
    assert watcher.values() == [arrays["w"].tolist()] == [[np.float32(2e38)]]


def spread(epoch_budget: int, num_rounds: int) -> Recipe:
    return Recipe(
        LrSchedule(0.1), Spread(epoch_budget, num_rounds), Horizon(num_rounds, epoch_budget)
    )


def qsr_of(epoch_budget: int) -> Recipe:
    return qsr(epoch_budget, 0.1, base_epochs=1, alpha=0.15)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # 2 of 8 epochs are done in 1 of 4 rounds; 18 of 20 are left for the other three.
        (spread(8, 4), spread(20, 4), 6),
        # 2 epochs are done: at lr 0.085 of a cosine over 8, (0.15 / lr)^2 is 3.1; at 0.099 of one
        # over 40 it is 2.3.
        (qsr_of(8), qsr_of(40), 2),
    ],
    ids=["spread", "qsr"],
)
def test_with_another_budget_the_plan_of_the_open_round_is_made_anew(
    before: Recipe, after: Recipe, expected: int
) -> None:
    a, b = two_sites()
    store, watcher = MemoryUpdates(), Watcher()
    b.faults = {2: raises}
    with pytest.raises(QuorumError):
        run(grid_of(a, b), before, watcher=watcher, updates=store, min_sites=2)
    assert store.sites() == ["a"]
    a, b = two_sites()
    position = watcher.positions[-1]
    run(grid_of(a, b), after, updates=store, min_sites=2, position=position, num_rounds=2)
    planned = [(plan.round, plan.local_epochs) for plan in a.plans]
    assert planned == [(2, expected)], "its update for the old plan does not count"


def counts(number: int) -> Fault:
    """Make a site report this number of examples."""

    def fault(request: Message, reply: Message) -> Message:
        reply.content.metric_records[METRICS][NUM_EXAMPLES] = number
        return reply

    return fault


def test_a_site_that_changes_its_number_of_examples_does_not_count() -> None:
    a, b = two_sites()
    b.faults = {2: counts(2**53)}
    watcher, _ = run(grid_of(a, b), fedavg(3, 1, 0.1))
    assert watcher.values() == [[2.5], [3.5], [6.0]]  # a alone adds 1
    assert watcher.records[1].causes == {"b": Cause.CLAIM}
    reason = f"metrics: 'num-examples' is {2**53}, but was 3 before"
    assert watcher.records[1].dropped == {"b": reason}


class Counted(LinearSite):
    """A site that reports its number of examples when it introduces itself."""

    def __call__(self, message: Message) -> Message | None:
        if message.metadata.message_type != MessageType.QUERY:
            return super().__call__(message)
        card = SiteCard(self.name, 0, "test", num_examples=4)
        return Message(card.to_content(), reply_to=message)


def test_a_site_has_no_more_examples_than_it_introduced_itself_with() -> None:
    honest, liar = Counted("a", 1.0, 4), Counted("b", 3.0, 5)
    watcher, _ = run(grid_of(honest, liar), fedavg(1, 1, 0.1))
    assert watcher.values() == [[1.0]]
    assert watcher.records[0].dropped == {
        "b": "metrics: 5 examples, but the site reported a data set of 4"
    }


def test_no_site_weighs_more_than_its_share_in_the_average_and_in_the_choice_of_the_best() -> None:
    sites = three_sites()
    sites[1].num_examples = 2**53  # and its model alone would be taken
    for site, accuracy in zip(sites, (0.1, 0.9, 0.3), strict=True):
        site.accuracy = lambda value, accuracy=accuracy: accuracy  # type: ignore[misc]
    recipe = replace(fedavg(1, 1, 0.1), max_site_weight=0.5)
    watcher, _ = run(grid_of(*sites), recipe, site_evaluation=True)
    # 1 and 5 weigh 1 each, and 3 as much as both: (1 + 2 * 3 + 5) / 4 = 3.
    assert watcher.values() == [[3.0]]
    expected = pytest.approx((0.1 + 2 * 0.9 + 0.3) / 4)
    assert watcher.records[0].start_evaluation[VALIDATION_ACCURACY] == expected
    assert watcher.records[0].site_evaluation[VALIDATION_ACCURACY] == expected


class FullDisk(MemoryUpdates):
    def add(self, update: Update) -> None:
        if update.site == "b":
            raise StorageError("cannot be written", where="here")
        super().add(update)


def test_an_update_that_cannot_be_kept_does_not_count_and_ends_the_run() -> None:
    store, watcher = FullDisk(), Watcher()
    with pytest.raises(StorageError):
        run(grid_of(*two_sites()), fedavg(1, 1, 0.1), watcher=watcher, updates=store)
    assert [event[1:] for event in watcher.told[1:]] == [("answered", 1, "a", True)]
    assert store.sites() == ["a"]


def test_an_update_is_kept_before_it_is_told_of_and_until_its_rounds_model_is_safe() -> None:
    class Nosy(Watcher):
        def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
            kept.append(store.sites())

        def round_folded(self, record: RoundRecord, position: Position) -> None:
            kept.append(store.sites())

    store = MemoryUpdates()
    kept: list[list[str]] = []
    run(grid_of(*two_sites()), fedavg(1, 1, 0.1), watcher=Nosy(), updates=store)
    assert kept == [["a"], ["a", "b"], ["a", "b"]]
    assert store.sites() == []


@dataclass
class Spoiler(Watcher):
    """Truncates the stored update of site b when it is first notified of it."""

    folder: Path = Path()

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        for path in self.folder.glob("*.safetensors"):
            if StoredArrays(path).metadata["site"] == site == "b" and not self.retried:
                path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("quorum", "value"), [(1, 1.0), (2, 2.5)])
def test_an_update_that_is_damaged_on_disk_is_not_averaged_and_asked_for_again_if_needed(
    tmp_path: Path, quorum: int, value: float
) -> None:
    a, b = two_sites()
    watcher = Spoiler(folder=tmp_path)
    run(
        grid_of(a, b),
        fedavg(1, 1, 0.1),
        watcher=watcher,
        updates=StoredUpdates(tmp_path),
        min_sites=quorum,
    )
    assert watcher.values() == [[value]]
    (record,) = watcher.retried or watcher.records
    assert record.dropped == {"b": "its update was damaged on the coordinator's disk"}
    assert record.causes == {"b": Cause.DAMAGED}
    assert len(b.plans) == quorum
    assert len(a.plans) == 1


@dataclass
class Mortal(Watcher):
    """Dies after a given number of replies."""

    lives: int = 0

    def site_answered(self, round_number: int, site: str, reason: str | None) -> None:
        super().site_answered(round_number, site, reason)
        self.lives -= 1
        if self.lives == 0:
            raise DiedError


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_a_resumed_run_asks_only_the_missing_sites_and_ends_with_the_same_bits(
    tmp_path: Path, answers: int
) -> None:
    def federation() -> tuple[list[LinearSite], FakeGrid]:
        sites = [LinearSite("a", 0.1, 3), LinearSite("b", 0.2, 5), LinearSite("c", 0.3, 7)]
        return sites, FakeGrid(dict(zip(NODE_IDS, sites, strict=False)), arrival=[C, A, B])

    recipe = co_learning(15, 0.1, initial_epochs=1, epsilon=10.0, max_epochs=8)
    initial = arrays_to_record({"w": np.linspace(-1, 1, 33, dtype=np.float32) / 3})
    whole, result = run(federation()[1], recipe, initial)

    before = Mortal(lives=3 + answers)
    with pytest.raises(DiedError):
        run(federation()[1], recipe, initial, watcher=before, updates=StoredUpdates(tmp_path))
    sites, grid = federation()
    after, resumed = run(
        grid,
        recipe,
        model(99.0),  # of no account: the position has the model
        updates=StoredUpdates(tmp_path),
        position=before.positions[-1],
    )
    kept = sorted(["c", "a", "b"][:answers])
    assert after.started()[0] == (sorted({"a", "b", "c"} - set(kept)), kept)
    assert [plan.round for plan in sites[1].plans] == ([3, 4] if answers == 3 else [2, 3, 4])
    ids = [record.plan["plan_id"] for record in whole.records]
    assert [record.plan["plan_id"] for record in before.records + after.records] == ids
    models = [position.arrays["w"].tobytes() for position in before.positions + after.positions]
    assert models == [position.arrays["w"].tobytes() for position in whole.positions]
    assert record_to_arrays(resumed.arrays)["w"].tobytes() == models[-1]
    assert record_to_arrays(result.arrays)["w"].tobytes() == models[-1]
    assert list(after.records[0].participants) == ["a", "b", "c"]


def exchanged(watcher: Watcher) -> list[tuple[int, int]]:
    """Return the bytes sent and received in each round."""
    return [(record.sent_bytes, record.received_bytes) for record in watcher.records]


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_a_resumed_run_has_exchanged_as_many_bytes_as_one_that_was_not_disturbed(
    tmp_path: Path, answers: int
) -> None:
    """The coordinator dies in round 2, in which a, the first to answer, is asked twice."""

    def federation() -> FakeGrid:
        sites = three_sites(a={2: times(1, sends_nan)})
        return FakeGrid(dict(zip(NODE_IDS, sites, strict=False)), arrival=[A, B, C])

    recipe, one = fedavg(3, 1, 0.1), model().count_bytes()
    whole, _ = run(federation(), recipe, site_evaluation=True)
    # In round 2 four are asked and answer; after the last one, three are asked to evaluate.
    assert exchanged(whole) == [(3 * one, 3 * one), (4 * one, 4 * one), (6 * one, 3 * one)]

    before, store = Watcher(), StoredUpdates(tmp_path)
    with dies_at("exchange.gathering", "accepted", round=2, count=answers):
        run(federation(), recipe, watcher=before, updates=store, site_evaluation=True)
    sites = three_sites()
    after, _ = run(
        FakeGrid(dict(zip(NODE_IDS, sites, strict=False))),
        recipe,
        updates=StoredUpdates(tmp_path),
        position=before.positions[-1],
        site_evaluation=True,
    )
    asked, kept = after.started()[0]
    assert (len(asked), len(kept)) == (3 - answers, answers)
    # What was on its way to the others when it died is sent again, and counted once.
    assert exchanged(before) + exchanged(after) == exchanged(whole)


def test_what_was_exchanged_before_a_death_is_counted_once_in_a_round_that_is_repeated(
    tmp_path: Path,
) -> None:
    recipe, one = fedavg(1, 1, 0.1), model().count_bytes()
    with dies_at("exchange.gathering", "accepted", count=1):
        run(grid_of(*three_sites()), recipe, updates=StoredUpdates(tmp_path))
    # Of the two that are left b raises in the first attempt, both times.
    sites = three_sites(b={1: times(2, raises)})
    after, _ = run(grid_of(*sites), recipe, updates=StoredUpdates(tmp_path), min_sites=3)
    assert after.records[0].attempts == 2
    # a once, by the process that died; c once; b three times.
    assert exchanged(after) == [(5 * one, 3 * one)]


@pytest.mark.parametrize("outer", [Momentum(0.7, 0.9, nesterov=True), Adam(0.01)], ids=repr)
@pytest.mark.parametrize("answers", [1, 2, 3, "folded", "finished"], ids="answers-{}".format)
def test_a_resumed_run_has_the_outer_optimizers_state_to_the_bit(
    tmp_path: Path, outer: OuterOptimizer, answers: int | str
) -> None:
    """The coordinator dies in round 3, after some replies or before the round is finished."""
    recipe = replace(fedavg(5, 1, 0.1), outer=outer)
    initial = {"w": np.linspace(-1, 1, 33, dtype=np.float32) / 3, "a": np.array(0.1)}

    @dataclass
    class DiesAtTheEnd(Watcher):
        def round_folded(self, record: RoundRecord, position: Position) -> None:
            if record.round == 3 and answers == "folded":
                raise DiedError

        def round_finished(self, record: RoundRecord, position: Position) -> None:
            if record.round == 3:
                raise DiedError

    def lead(folder: Path, *more: Any) -> None:
        with run_directory(folder, {}, resume=True) as directory:
            position = directory.begin(initial, Position(initial, Fixed(1).start()), {})
            sites = [LinearSite("a", 0.1, 3), LinearSite("b", 0.2, 5), LinearSite("c", 0.3, 7)]
            options = {"position": position, "updates": directory.updates}
            watchers: list[Any] = [*more, directory]
            strategy = strategy_of(recipe, *watchers, **options)
            strategy.trainable = frozenset(initial)
            strategy.start(grid_of(*sites), arrays_to_record(position.arrays), timeout=TIMEOUT_S)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    lead(whole)
    with pytest.raises(DiedError):
        lead(cut, DiesAtTheEnd() if isinstance(answers, str) else Mortal(lives=6 + answers))
    lead(cut)
    assert (cut / GLOBAL_MODEL).read_bytes() == (whole / GLOBAL_MODEL).read_bytes()
    # Sealed: equal names are equal bytes.
    ends = [sorted(p.name for p in folder.glob("checkpoints/*-outer.*")) for folder in (whole, cut)]
    assert ends[0] == ends[1]
    assert len(ends[0]) == 2


def test_a_run_that_had_finished_goes_on_to_no_further_round() -> None:
    watcher, _ = run(grid_of(*two_sites()), fedavg(2, 1, 0.1))
    grid = grid_of(*two_sites())
    again, result = run(grid, fedavg(2, 1, 0.1), position=watcher.positions[-1])
    assert again.told == []
    assert grid.sent == []
    assert record_to_arrays(result.arrays)["w"].tolist() == [5.0]


def test_the_best_round_so_far_is_carried_over_a_resume() -> None:
    def evaluate(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"validation-accuracy": [0.7, 0.6, 0.8][round_number - 1]})

    first, _ = run(grid_of(*two_sites()), fedavg(1, 1, 0.1), evaluate_fn=evaluate)
    position = first.positions[-1]
    assert (position.best_round, position.best_score) == (1, 0.7)
    second, _ = run(
        grid_of(*two_sites()), fedavg(3, 1, 0.1), evaluate_fn=evaluate, position=position
    )
    assert [position.best_round for position in second.positions] == [1, 3]


def leaves(grid: FakeGrid, node: int) -> Fault:
    """Return a fault that takes the site offline after its reply."""

    def leave(request: Message, reply: Message) -> Message:
        del grid.nodes[node]
        return reply

    return leave


def test_a_site_that_is_gone_is_waited_for_once() -> None:
    a, b = two_sites()
    grid = grid_of(a, b)
    b.faults = {1: leaves(grid, B)}
    watcher, _ = run(grid, fedavg(4, 1, 0.1), wait_s=7.0)
    assert [record.seconds for record in watcher.records] == pytest.approx([0, 7, 0, 0], abs=0.1)
    assert [record.missing for record in watcher.records] == [[], ["b"], ["b"], ["b"]]


def test_it_is_waited_for_again_when_it_came_back_meanwhile() -> None:
    a, b = two_sites()
    grid = grid_of(a, b)

    def come_back(request: Message, reply: Message) -> Message:
        grid.nodes[B] = b
        return reply

    b.faults = {1: leaves(grid, B), 4: leaves(grid, B)}
    a.faults = {3: come_back}
    watcher, _ = run(grid, fedavg(5, 1, 0.1), wait_s=7.0)
    assert [record.seconds for record in watcher.records] == pytest.approx([0, 7, 0, 0, 7], abs=0.1)


def test_no_wait_for_a_site_is_longer_than_the_rounds_deadline() -> None:
    a, b = two_sites()
    grid = grid_of(a, b)
    b.faults = {1: leaves(grid, B)}
    watcher, _ = run(grid, fedavg(2, 1, 0.1), wait_s=600.0)
    assert watcher.records[1].seconds == pytest.approx(TIMEOUT_S, abs=0.1)


def test_a_round_begins_as_soon_as_the_site_that_was_gone_is_back(clock: Clock) -> None:
    a, b = two_sites()
    grid = grid_of(a, b)
    b.faults = {1: leaves(grid, B)}
    clock.after(3.0, lambda: grid.nodes.update({C: LinearSite("b", step=3.0, num_examples=3)}))
    watcher, _ = run(grid, fedavg(2, 1, 0.1), wait_s=7.0)
    assert watcher.values() == [[2.5], [5.0]]
    assert watcher.records[1].missing == []
    assert watcher.records[1].seconds == pytest.approx(3.0, abs=1.1)


def test_a_site_that_failed_and_went_is_hoped_for_in_its_round_and_not_again_after_it() -> None:
    a, b = two_sites()
    grid = grid_of(a, b)

    def crash(request: Message, reply: Message) -> Message | None:
        del grid.nodes[B]
        return raises(request, reply)

    b.faults = {1: crash}
    watcher, _ = run(grid, fedavg(2, 1, 0.1), wait_s=7.0)
    assert [record.seconds for record in watcher.records] == pytest.approx([7, 0], abs=0.2)
    assert list(watcher.records[0].dropped) == ["b"]
    assert watcher.records[1].missing == ["b"]


def test_below_the_quorum_gone_sites_are_waited_for_at_every_attempt(clock: Clock) -> None:
    a, b = two_sites()
    grid = grid_of(a, b)
    b.faults = {1: leaves(grid, B)}
    watcher, error = stopped(grid, fedavg(2, 1, 0.1), min_sites=2, wait_s=7.0)
    # As one that has just gone, and, at each of three attempts, as one the quorum lacks.
    assert clock.now == pytest.approx(4 * 7.0, abs=0.2)
    assert error.hint == (
        "b: not online. Waited 21 s for the quorum; to wait longer, set wait-for-sites-s"
    )
    assert (error.got, watcher.failed[0].missing) == (1, ["b"])
    assert len(a.plans) == 2  # its update of round 2 was kept


def test_a_site_whose_update_is_kept_is_not_lacking_for_the_quorum_when_it_is_gone() -> None:
    a, b = two_sites()
    grid = grid_of(a, b)
    a.faults, b.faults = {1: leaves(grid, A)}, {1: times(2, raises)}
    watcher, _ = run(grid, fedavg(1, 1, 0.1), min_sites=2, wait_s=7.0)
    assert watcher.values() == [[2.5]]
    assert watcher.started() == [(["a", "b"], []), (["b"], ["a"])]
    assert watcher.records[0].seconds == pytest.approx(0.0, abs=0.1)  # nor is it waited for
    assert (watcher.records[0].missing, list(watcher.records[0].participants)) == ([], ["a", "b"])


def test_below_the_quorum_the_wait_ends_as_soon_as_the_quorum_is_there(clock: Clock) -> None:
    a, b, c = three_sites()
    grid = grid_of(a, b, c)
    b.faults, c.faults = {1: leaves(grid, B)}, {1: leaves(grid, C)}
    clock.after(8.0, lambda: grid.nodes.update({D: LinearSite("b", 3.0, 3)}))
    watcher, _ = run(grid, fedavg(2, 1, 0.1), min_sites=2, wait_s=7.0)
    # 7 s for the two that have gone, and then until one of them is back.
    assert watcher.records[1].seconds == pytest.approx(8.0, abs=1.1)
    assert watcher.records[1].missing == ["c"]


def test_a_site_that_comes_back_in_the_round_is_not_missing_in_it(clock: Clock) -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a, B: b}, delays={A: 9.0})
    b.faults = {1: leaves(grid, B)}
    # Gone in round 2, which begins at 9 s, and back after the 2 s that it is waited for.
    clock.after(14.0, lambda: grid.nodes.update({C: LinearSite("b", 3.0, 3)}))
    watcher, _ = run(grid, fedavg(2, 1, 0.1), wait_s=2.0)
    assert watcher.values() == [[2.5], [5.0]]
    assert watcher.records[1].missing == []
    assert watcher.records[1].asked_again == []


def test_a_node_that_hangs_holds_no_round_up_for_longer_than_the_wait_and_then_no_more() -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a, B: b, C: lambda message: None}, delays={A: 2.0, B: 3.0})
    watcher, _ = run(grid, fedavg(4, 1, 0.1), wait_s=7.0)
    # The answer to the hello is waited for once, for 7 s.
    seconds = [record.seconds for record in watcher.records]
    assert seconds == pytest.approx([10.0, 3.0, 3.0, 3.0], abs=0.2)
    assert watcher.values()[-1] == [10.0]


def test_a_site_that_comes_back_between_two_attempts_completes_the_round(clock: Clock) -> None:
    a, b = two_sites()
    grid = grid_of(a, b)
    b.faults = {1: leaves(grid, B)}
    clock.after(18.0, lambda: grid.nodes.update({C: LinearSite("b", step=3.0, num_examples=3)}))
    watcher, _ = run(grid, fedavg(2, 1, 0.1), min_sites=2, wait_s=7.0)
    assert watcher.values() == [[2.5], [5.0]]
    assert (watcher.records[1].attempts, watcher.records[1].missing) == (2, [])


def test_a_reply_that_comes_too_late_is_recorded_where_it_came_with_the_round_it_was_for() -> None:
    a, b = two_sites()
    b.faults = {3: silent}
    grid = FakeGrid({A: a, B: b}, delays={B: 15.0})
    watcher, _ = run(grid, fedavg(3, 1, 0.1))
    # Each round takes the 10 s that b is waited for: what was asked at 0 s comes at 15 s.
    assert [record.late for record in watcher.records] == [{}, {"b": 1}, {"b": 2}]
    assert watcher.values() == [[1.0], [2.0], [3.0]]
    assert [list(record.dropped) for record in watcher.records] == [["b"]] * 3


def test_the_deadline_is_learned_from_the_slowest_site_and_told_to_all() -> None:
    a, b = two_sites()
    grid = FakeGrid({A: a, B: b}, delays={A: 100.0, B: 40.0})
    recipe = co_learning(6, 0.1, initial_epochs=2, epsilon=10.0, max_epochs=4)
    deadline = Deadline(factor=3.0, longest_s=1000.0)
    watcher, _ = run(grid, recipe, model(1.0), timeout=0.0, deadline=deadline)
    # Two epochs in 100 s: 50 s each, and 3 * 50 * 4 for the four of round 2.
    assert watcher.positions[0].pace == pytest.approx({"a": 50.0, "b": 20.0}, abs=0.6)
    found = [record.deadline_s for record in watcher.records]
    assert found == pytest.approx([1000.0, 600.0], abs=8)
    assert [deadline_of(m.content) for m in grid.sent_of_type(MessageType.TRAIN)] == [
        found[0],
        found[0],
        found[1],
        found[1],
    ]


def test_an_update_that_was_finished_before_says_nothing_about_a_sites_pace() -> None:
    a, b = two_sites()
    b.faults = {2: lambda request, reply: Message(shortened(reply.content), reply_to=request)}
    grid = FakeGrid({A: a, B: b}, delays={A: 100.0, B: 40.0})
    watcher, _ = run(grid, fedavg(2, 1, 0.1), timeout=0.0)
    assert watcher.positions[0].pace["b"] == watcher.positions[1].pace["b"] > 39.0
    a, b = two_sites()
    b.faults = {1: lambda request, reply: Message(shortened(reply.content), reply_to=request)}
    grid = FakeGrid({A: a, B: b}, delays={A: 100.0, B: 40.0})
    watcher, _ = run(grid, fedavg(2, 1, 0.1), timeout=0.0)
    assert watcher.positions[0].pace["b"] == 0.0, "not measured"
    assert watcher.positions[1].pace["b"] == pytest.approx(40.0, abs=0.8)


@pytest.mark.parametrize(
    ("recipe", "deadlines"),
    [
        (fedavg(2, 4, 0.1), [240.0, 480.0]),  # 3 * 20 * 4, and double
        # A step says nothing of how long a pass over all examples takes.
        (diloco(2, 4, 0.1), [1000.0, 1000.0]),
    ],
)
def test_a_pass_for_statistics_has_the_time_of_a_round_of_epochs_but_not_of_one_of_steps(
    tmp_path: Path, recipe: Recipe, deadlines: list[float]
) -> None:
    position = Position({}, recipe.controller.start(), pace={"a": 20.0, "b": 5.0})
    strategy = strategy_of(recipe, position=position, deadline=Deadline(longest_s=1000.0))
    found = strategy.recalibration({}, MemoryUpdates(), Recalibrations(tmp_path))
    assert [found.pacing.seconds("ab", attempt) for attempt in (1, 2)] == deadlines
    fixed = strategy_of(recipe, position=position, deadline=Deadline(fixed_s=7.0))
    found = fixed.recalibration({}, MemoryUpdates(), Recalibrations(tmp_path))
    assert found.pacing.seconds("ab") == 7.0


def test_a_pace_is_kept_while_its_site_does_not_answer_and_over_a_resume() -> None:
    a, b = two_sites()
    b.faults = {2: raises}
    grid = FakeGrid({A: a, B: b}, delays={A: 2.0, B: 4.0})
    watcher, _ = run(grid, fedavg(2, 1, 0.1))
    assert watcher.positions[1].pace["b"] == watcher.positions[0].pace["b"]
    resumed, _ = run(
        grid_of(*two_sites()),
        fedavg(3, 1, 0.1),
        timeout=0.0,
        deadline=Deadline(factor=100.0),
        position=watcher.positions[1],
    )
    assert resumed.records[0].deadline_s == pytest.approx(400.0, abs=10)


def test_the_pace_of_a_site_that_has_left_sets_no_deadline() -> None:
    """At 1000 s per epoch, the pace of the offline site would delay each round by 50 min."""
    grid = grid_of(*two_sites())
    grid.delays[B] = 1000.0
    watcher = Watcher()
    strategy = strategy_of(fedavg(3, 1, 0.1), watcher)
    grid.clock.after(1500.0, lambda: grid.stop(B))
    grid.delays[A] = 700.0
    strategy.start(grid, model())
    assert watcher.positions[-1].pace["b"] == pytest.approx(1000.0, abs=2)  # it may come back
    deadlines = [record.deadline_s for record in watcher.records]
    assert deadlines == pytest.approx([86400.0, 3000.0, 2100.0], abs=6)


def test_the_pace_of_updates_that_an_earlier_process_took_in_is_not_lost(clock: Clock) -> None:
    """Otherwise the next deadline would be learned only from the sites that were asked again."""
    a, b = two_sites()
    store = MemoryUpdates()
    grid = FakeGrid({A: a, B: b}, delays={A: 40.0, B: 2.0})
    b.faults = {1: times(2, raises)}
    watcher, _ = run(
        grid,
        fedavg(2, 1, 0.1),
        min_sites=2,
        updates=store,
        timeout=0.0,
        deadline=Deadline(longest_s=1000.0),
    )
    # Site b alone was asked in the second attempt; a's 40 s count, times 3.
    assert watcher.records[0].attempts == 2
    assert watcher.records[1].deadline_s == pytest.approx(120.0, rel=0.1)
