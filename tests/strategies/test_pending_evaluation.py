"""A model is evaluated during the next round; the records are as if evaluated before it."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Result

from strategies.common.errors import QuorumError
from strategies.exchange.messages import arrays_to_record, record_to_arrays
from strategies.method.local_work import Fixed, WorkState
from strategies.method.recipes import fedavg
from strategies.pending_evaluation import EvaluateFn, Inline, one_thread
from strategies.storage.position import Position
from strategies.storage.round_record import RoundRecord
from strategies.storage.run_directory import (
    BEST_MODEL,
    GLOBAL_MODEL,
    HISTORY,
    read_events,
    read_history,
    run_directory,
)
from tests.strategies.fakes import (
    NODE_IDS,
    Clock,
    FakeGrid,
    LinearSite,
    dies_at,
    grid_of,
    raises,
    times,
)
from tests.strategies.test_round_loop import TIMEOUT_S, Watcher, model, strategy_of, two_sites

P = ParamSpec("P")
T = TypeVar("T")

A, B, *_ = NODE_IDS
PATIENCE_S = 60.0
ROUNDS = 3
BY_COORDINATOR = [
    {"validation-accuracy": score, "test-accuracy": score / 2} for score in (0.5, 0.7, 0.7)
]
BY_SITES: list[dict[str, float]] = [{"test-accuracy": 0.5}] * ROUNDS
"""Without a score of the coordinator, the sites' scores select the model, one round later."""


class Held(Executor):
    """Runs a call when the test requests it, or when its result is awaited."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        class Waits(Future[T]):
            def result(self, timeout: float | None = None) -> T:
                if not self.done():
                    self.set_result(fn(*args, **kwargs))
                return super().result(timeout)

        outcome = Waits()
        self.calls.append(outcome.result)
        return outcome


@contextmanager
def inline() -> Iterator[Executor]:
    yield Inline()


@contextmanager
def held() -> Iterator[Executor]:
    yield Held()


every_executor = pytest.mark.parametrize("executor_of", [inline, held, one_thread])


def evaluator(metrics: list[dict[str, float]]) -> EvaluateFn:
    """Return the evaluation function for the models of rounds 1, 2, ...: 2.5, 5, 7.5."""

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        assert record_to_arrays(arrays)["w"].tolist() == [2.5 * number]
        return MetricRecord({**metrics[number - 1]})

    return evaluate


def lead(
    folder: Path,
    evaluate: EvaluateFn,
    executor: Executor,
    *watchers: Watcher,
    keep: int = 2,
) -> Result:
    """Start or resume a run of three rounds in a directory and complete it."""
    initial = record_to_arrays(model())
    with run_directory(folder, {}, resume=True, keep_checkpoints=keep) as directory:
        position = directory.begin(initial, Position(initial, Fixed(1).start()), {})
        a, b = two_sites()
        a.accuracy = b.accuracy = lambda w: {0.0: 0.9, 2.5: 0.4, 5.0: 0.8, 7.5: 0.6}[w]
        observers: list[Any] = [directory, *watchers]
        strategy = strategy_of(
            fedavg(ROUNDS, 1, 0.1),
            *observers,
            executor=executor,
            updates=directory.updates,
            position=position,
            site_evaluation=True,
        )
        return strategy.start(
            grid_of(a, b),
            arrays_to_record(position.arrays),
            timeout=TIMEOUT_S,
            evaluate_fn=evaluate,
        )


def left(folder: Path) -> dict[str, object]:
    """Return the results of a run, without times."""
    return {
        "models": [(folder / name).read_bytes() for name in (GLOBAL_MODEL, BEST_MODEL)],
        "lines": [without_times(line) for line in read_history(folder)],
    }


def checkpoints_of(folder: Path) -> list[int]:
    """Return the rounds that have a checkpoint, in order."""
    return sorted(int(path.name.split(".")[0]) for path in folder.glob("checkpoints/*.json"))


def without_times(line: dict[str, Any]) -> str:
    return json.dumps({**line, "seconds": 0.0, "deadline_s": 0.0})


def test_the_next_rounds_messages_have_gone_out_before_a_model_is_evaluated() -> None:
    sent = {number: threading.Event() for number in range(2, ROUNDS + 1)}
    in_time: list[bool] = []

    def tell(request: Message, reply: Message) -> Message:
        sent[a.plans[-1].round].set()
        return reply

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number < ROUNDS:
            in_time.append(sent[number + 1].is_set())
        return MetricRecord({"validation-accuracy": number / 10})

    a, b = two_sites()
    a.faults = dict.fromkeys(sent, tell)
    watcher = Watcher()
    with one_thread() as executor:
        strategy_of(fedavg(ROUNDS, 1, 0.1), watcher, executor=executor).start(
            grid_of(a, b), model(), timeout=TIMEOUT_S, evaluate_fn=evaluate
        )
    assert in_time == [True, True]
    told = [event[1:3] for event in watcher.told if event[1] != "answered"]
    assert told == [
        ("started", 1),
        ("started", 2),
        ("finished", 1),
        ("started", 3),
        ("finished", 2),
        ("finished", 3),
    ]
    assert [record.evaluation["validation-accuracy"] for record in watcher.records] == [
        0.1,
        0.2,
        0.3,
    ]


@pytest.mark.parametrize(
    ("known_at_s", "order"),
    [
        (2.0, [("a", 2), ("finished", 1), ("b", 2), ("finished", 2)]),
        (None, [("a", 2), ("b", 2), ("finished", 1), ("finished", 2)]),
    ],
)
def test_a_round_is_told_of_as_soon_as_its_evaluation_is_known_and_before_the_next_is_folded(
    clock: Clock, known_at_s: float | None, order: list[tuple[str, int]]
) -> None:
    executor, watcher = Held(), Watcher()

    def start_of_2(request: Message, reply: Message) -> Message:
        if known_at_s is not None:
            clock.after(known_at_s, lambda: executor.calls[0]())
        return reply

    a, b = two_sites()
    a.faults = {2: start_of_2}
    grid = FakeGrid({A: a, B: b}, delays={A: 1.0, B: 5.0})
    strategy_of(fedavg(2, 1, 0.1), watcher, executor=executor).start(
        grid, model(), timeout=TIMEOUT_S, evaluate_fn=evaluator(BY_COORDINATOR)
    )
    begun = watcher.told.index(("watcher", "started", 2, ["a", "b"], []))
    told = [event[1:] for event in watcher.told[begun + 1 :]]
    assert [(event[2] if event[0] == "answered" else event[0], event[1]) for event in told] == order


@every_executor
@pytest.mark.parametrize("metrics", [BY_COORDINATOR, BY_SITES], ids=["coordinator", "sites"])
@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_recorded_does_not_depend_on_where_models_are_evaluated(
    tmp_path: Path,
    executor_of: Callable[[], AbstractContextManager[Executor]],
    metrics: list[dict[str, float]],
    keep: int,
) -> None:
    expected = lead(tmp_path / "inline", evaluator(metrics), Inline())
    watcher = Watcher()
    with executor_of() as executor:
        result = lead(tmp_path / "other", evaluator(metrics), executor, watcher, keep=keep)
    assert left(tmp_path / "other") == left(tmp_path / "inline")
    assert [line["evaluation"] for line in read_history(tmp_path / "other")] == metrics
    events = read_events(tmp_path / "other", "round-finished")
    assert [event["evaluation"] for event in events] == metrics
    assert result.evaluate_metrics_serverapp == expected.evaluate_metrics_serverapp
    assert watcher.positions[-1].best_round == 2  # of two with equal scores, the first
    assert watcher.positions[-1].unfinished is None
    assert checkpoints_of(tmp_path / "other") == [2, 3][-keep:]


DEATHS = [
    ("storage.run_directory", "round-folded", {"round": 1}),
    ("exchange.gathering", "sending", {"round": 2}),
    ("exchange.gathering", "accepted", {"round": 2, "count": 1}),
    ("storage.run_directory", "checkpoint-written", {"round": 1}),
    ("storage.run_directory", "round-folded", {"round": 2}),
    ("exchange.gathering", "sending", {"round": 3}),
    ("storage.run_directory", "round-finished", {"round": 2}),
    ("storage.run_directory", "round-folded", {"round": 3}),
    ("storage.run_directory", "checkpoint-written", {"round": 3}),
]


@pytest.mark.parametrize("metrics", [BY_COORDINATOR, BY_SITES], ids=["coordinator", "sites"])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(("module", "point", "where"), DEATHS, ids=str)
def test_a_run_that_dies_before_a_model_is_evaluated_goes_on_to_the_same_records(
    tmp_path: Path,
    module: str,
    point: str,
    where: dict[str, int],
    keep: int,
    metrics: list[dict[str, float]],
) -> None:
    lead(tmp_path / "whole", evaluator(metrics), Inline())
    with dies_at(module, point, **where):
        lead(tmp_path / "cut", evaluator(metrics), Held(), keep=keep)
    lead(tmp_path / "cut", evaluator(metrics), Held(), keep=keep)
    assert left(tmp_path / "cut") == left(tmp_path / "whole")
    assert checkpoints_of(tmp_path / "cut") == [2, 3][-keep:]


@every_executor
def test_an_evaluation_that_raises_ends_the_run_which_can_go_on(
    tmp_path: Path, executor_of: Callable[[], AbstractContextManager[Executor]]
) -> None:
    def fail(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number == 2:
            raise ZeroDivisionError("no example")
        return evaluator(BY_COORDINATOR)(number, arrays)

    with executor_of() as executor, pytest.raises(ZeroDivisionError, match="no example"):
        lead(tmp_path / "cut", fail, executor)
    assert [line["round"] for line in read_history(tmp_path / "cut")] == [1]
    lead(tmp_path / "cut", evaluator(BY_COORDINATOR), Inline())
    lead(tmp_path / "whole", evaluator(BY_COORDINATOR), Inline())
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_a_round_is_recorded_before_the_failure_of_the_next() -> None:
    a, b = two_sites()
    b.faults = {2: times(2, raises)}
    watcher = Watcher()
    strategy = strategy_of(
        fedavg(2, 1, 0.1), watcher, executor=Held(), min_sites=2, max_round_retries=0
    )
    with pytest.raises(QuorumError):
        strategy.start(
            grid_of(a, b), model(), timeout=TIMEOUT_S, evaluate_fn=evaluator(BY_COORDINATOR)
        )
    ends = [event[1:] for event in watcher.told if event[1] in ("finished", "failed")]
    assert ends == [("finished", 1), ("failed", 2)]
    assert watcher.records[0].evaluation == BY_COORDINATOR[0]


def test_the_time_of_an_evaluation_is_the_rounds_only_where_the_next_round_waits_for_it(
    clock: Clock,
) -> None:
    def evaluate(number: int, arrays: ArrayRecord) -> None:
        clock.sleep(7.0)

    seconds = []
    for executor in (Inline(), Held()):
        watcher = Watcher()
        grid = FakeGrid({A: LinearSite("a")}, delays={A: 3.0})
        strategy_of(fedavg(1, 1, 0.1), watcher, executor=executor).start(
            grid, model(), timeout=TIMEOUT_S, evaluate_fn=evaluate
        )
        seconds.append(watcher.records[0].seconds)
    assert seconds == pytest.approx([10.0, 3.0], abs=0.1)


def test_a_checkpoint_without_an_evaluation_has_no_line_yet(tmp_path: Path) -> None:
    initial = record_to_arrays(model())
    start = Position(initial, Fixed(1).start())
    record = RoundRecord(1, plan={"round": 1, "local_epochs": 1}, seconds=2.5)
    folded = Position(initial, WorkState(1, 1, 1), unfinished=record)
    with run_directory(tmp_path, {}) as directory:
        directory.begin(initial, start, {})
        directory.round_folded(record, folded)
    (tmp_path / HISTORY).write_text('{"round": 1, "of": "another process"}\n')
    with run_directory(tmp_path, {}, resume=True) as directory:
        assert directory.begin(initial, start, {}).unfinished == record
        assert directory.seconds_before == 2.5
        assert read_history(tmp_path) == []
        written = (tmp_path / GLOBAL_MODEL).stat().st_mtime_ns
        finished = replace(folded, unfinished=None, best_round=1, best_score=0.5)
        directory.round_finished(record, finished)
    assert read_history(tmp_path) == [record.to_dict()]
    assert (tmp_path / BEST_MODEL).read_bytes() == (tmp_path / GLOBAL_MODEL).read_bytes()
    # The model is not written a second time.
    assert (tmp_path / GLOBAL_MODEL).stat().st_mtime_ns == written
