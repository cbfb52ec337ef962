"""Recalibration after the last round: requests, checks, pooling, storage, no site asked twice."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, MetricRecord
from numpy.typing import NDArray

from strategies.aggregation.averaging import by_examples
from strategies.common.errors import EngineError, QuorumError
from strategies.exchange.attendance import Attendance
from strategies.exchange.deadline import Deadline, Pacing
from strategies.exchange.gathering import Terms
from strategies.exchange.membership import Membership
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    NUM_VALIDATION,
    STATISTICS,
    SiteCard,
    arrays_to_record,
    evaluate_reply_content,
    record_to_arrays,
    statistics_plan_id,
    statistics_reply_content,
)
from strategies.exchange.metrics import VALIDATION_ACCURACY
from strategies.exchange.update_store import MemoryUpdates, UpdateStore
from strategies.recalibration import Recalibration
from strategies.storage.recalibrations import Recalibrations
from strategies.storage.updates import StoredUpdates
from tests.strategies.fakes import (
    NODE_IDS,
    FakeGrid,
    Fault,
    dies_at,
    grid_of,
    raises,
    silent,
    times,
)

LAYERS = {"bn.running_mean": "bn.running_var"}
MODEL: dict[str, NDArray[np.generic]] = {
    "weight": np.array([7.0], np.float32),
    "bn.running_mean": np.array([0.0], np.float32),
    "bn.running_var": np.array([1.0], np.float32),
    "bn.num_batches_tracked": np.array(9),
}
Spoil = Callable[[ArrayRecord], object]


@dataclass
class StatisticsSite:
    """A site whose data have the given mean and variance."""

    name: str
    mean: float
    variance: float = 1.0
    num_examples: int = 1
    fault: Fault | None = None
    simulated: bool = False
    asked: list[dict[str, NDArray[np.generic]]] = field(default_factory=list)

    def __call__(self, message: Message) -> Message | None:
        if message.metadata.message_type == MessageType.QUERY:
            card = SiteCard(self.name, 0, "test", self.simulated)
            return Message(card.to_content(), reply_to=message)
        if message.metadata.message_type == MessageType.EVALUATE:
            metrics = {NUM_VALIDATION: 2, VALIDATION_ACCURACY: 0.5}
            return Message(evaluate_reply_content(metrics), reply_to=message)
        assert message.metadata.message_type == STATISTICS
        self.asked.append(record_to_arrays(message.content.array_records[ARRAYS]))
        content = statistics_reply_content(
            arrays_to_record(
                {
                    "bn.running_mean": np.array([self.mean], np.float32),
                    "bn.running_var": np.array([self.variance], np.float32),
                }
            ),
            self.num_examples,
            statistics_plan_id(message.content),
        )
        reply = Message(content, reply_to=message)
        return self.fault(message, reply) if self.fault else reply


class Bench:
    """The inputs of a recalibration, in memory or in a folder."""

    def __init__(self, folder: Path, updates: UpdateStore | None = None, **terms: Any) -> None:
        self.folder = folder
        self.events: list[tuple[str, dict[str, Any]]] = []
        fields: dict[str, Any] = {
            "layers": LAYERS,
            "weighting": by_examples,
            "updates": updates if updates is not None else MemoryUpdates(),
            "results": Recalibrations(folder / "recalibrations"),
            "round_number": 4,
            "sites": Attendance(Membership()),
            "terms": Terms(min_sites=2, max_retries=1, wait_s=5.0),
            "pacing": Pacing(Deadline(fixed_s=100.0), quorum=2),
            "site_evaluation": False,
            "on_event": lambda kind, **more: self.events.append((kind, more)),
        }
        self.recalibration = Recalibration(**(fields | terms))

    def apply(
        self, grid: FakeGrid, model: dict[str, NDArray[np.generic]] = MODEL
    ) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
        return self.recalibration.apply(
            grid, model, lambda number, arrays: MetricRecord({"validation-accuracy": 0.75})
        )


def three(**changes: Fault) -> list[StatisticsSite]:
    return [
        StatisticsSite("a", 0.0, 2.0, 1, changes.get("a")),
        StatisticsSite("b", 4.0, 6.0, 3, changes.get("b")),
        StatisticsSite("c", 3.0, 8.0, 4, changes.get("c")),
    ]


def test_every_site_gets_the_final_model_and_only_its_statistics_change(tmp_path: Path) -> None:
    sites, bench = three(), Bench(tmp_path)
    arrays, told = bench.apply(grid_of(*sites))
    assert list(arrays) == list(MODEL)
    # Of a and b together: mean 3, variance 8, as those of c.
    assert [arrays[f"bn.running_{kind}"].tolist() for kind in ("mean", "var")] == [[3.0], [8.0]]
    for name in ("weight", "bn.num_batches_tracked"):
        assert arrays[name] is MODEL[name]
    for site in sites:
        assert [list(asked) for asked in site.asked] == [list(MODEL)]
    assert told["participants"] == {"a": 1, "b": 3, "c": 4}
    assert told["evaluation"] == {"validation-accuracy": 0.75}
    assert (told["round"], told["attempts"], told["dropped"]) == (4, 1, {})
    # Three models of 20 bytes and a header each out, two numbers a site back.
    assert told["sent_bytes"] == 3 * arrays_to_record(MODEL).count_bytes()
    assert 0 < told["received_bytes"] < told["sent_bytes"]
    assert [kind for kind, _ in bench.events].count("recalibrated") == 1


def test_the_bits_do_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    results = []
    for number, arrival in enumerate((NODE_IDS[:3], NODE_IDS[2::-1])):
        sites = [
            StatisticsSite(name, m, v, n)
            for name, m, v, n in (("a", 0.1, 0.3, 3), ("b", 0.7, 0.9, 7), ("c", 1.3, 0.2, 11))
        ]
        grid = grid_of(*sites)
        grid.arrival = list(arrival)
        results.append(Bench(tmp_path / str(number)).apply(grid)[0])
    assert all(results[0][name].tobytes() == results[1][name].tobytes() for name in MODEL)


def spoiled(spoil: Spoil) -> Fault:
    def fault(request: Message, reply: Message) -> Message:
        spoil(reply.content.array_records[ARRAYS])
        return reply

    return fault


def with_array(name: str, array: NDArray[np.generic]) -> Fault:
    return spoiled(lambda record: record.update({name: Array(array)}))


def with_metrics(**metrics: int) -> Fault:
    def fault(request: Message, reply: Message) -> Message:
        reply.content.metric_records[METRICS] = MetricRecord(
            {name.replace("_", "-"): value for name, value in metrics.items()}
        )
        return reply

    return fault


def of_another_model(request: Message, reply: Message) -> Message:
    reply.content.config_records["reply"]["plan-id"] = "0123456789abcdef"
    return reply


F32 = np.float32
UNFIT = {
    "nan": (with_array("bn.running_mean", np.array([np.nan], F32)), "values are not finite"),
    "inf": (with_array("bn.running_var", np.array([np.inf], F32)), "values are not finite"),
    "negative": (with_array("bn.running_var", np.array([-1e-9], F32)), "1 of 1 values are below 0"),
    "overflow": (with_array("bn.running_mean", np.array([1e20], F32)), "overflow float32"),
    "shape": (with_array("bn.running_var", np.zeros(2, F32)), r"got float32\[2\]"),
    "dtype": (with_array("bn.running_var", np.zeros(1)), r"got float64\[1\]"),
    "extra": (with_array("weight", np.zeros(1, F32)), "is not in the global model"),
    "missing": (spoiled(lambda record: record.pop("bn.running_var")), "is missing"),
    "no-examples": (with_metrics(num_examples=0), "expected a count > 0"),
    "no-count": (with_metrics(), "'num-examples' is missing"),
    "metric": (with_metrics(num_examples=1, num_steps=2), "not among the metrics"),
    "other-model": (of_another_model, "plan-id"),
    "raises": (raises, "the disk of this site is full"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_an_unfit_reply_costs_that_sites_statistics_and_names_it(tmp_path: Path, kind: str) -> None:
    fault, reason = UNFIT[kind]
    sites = three(c=fault)
    arrays, told = Bench(tmp_path).apply(grid_of(*sites))
    assert list(told["participants"]) == ["a", "b"]
    assert list(told["dropped"]) == ["c"]
    assert pytest.approx(8.0) == arrays["bn.running_var"][0]
    assert re.search(reason, told["dropped"]["c"])
    assert told["asked_again"] == ["c"]
    assert len(sites[2].asked) == 2


def test_a_site_that_fails_once_is_asked_again_and_counts(tmp_path: Path) -> None:
    _, told = Bench(tmp_path).apply(grid_of(*three(b=times(1, raises))))
    assert list(told["participants"]) == ["a", "b", "c"]
    assert (told["dropped"], told["asked_again"]) == ({}, ["b"])


def test_a_silent_site_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    _, told = Bench(tmp_path).apply(grid_of(*three(b=silent)))
    assert list(told["participants"]) == ["a", "c"]
    assert told["dropped"]["b"] == "no reply within 100 s"


def test_a_site_that_is_gone_is_named_as_missing(tmp_path: Path) -> None:
    sites = Attendance(Membership(names=frozenset({"d"})))
    _, told = Bench(tmp_path, sites=sites).apply(grid_of(*three()))
    assert told["missing"] == ["d"]


def test_below_the_quorum_the_missing_are_asked_again_and_then_the_run_stops(
    tmp_path: Path,
) -> None:
    sites = three(b=raises, c=raises)
    with pytest.raises(QuorumError, match="too few statistics") as caught:
        Bench(tmp_path).apply(grid_of(*sites))
    assert (caught.value.got, caught.value.expected) == (1, "2 or more")
    assert "b: the site failed" in str(caught.value)
    # One that answered is not asked again; the others twice an attempt.
    assert [len(site.asked) for site in sites] == [1, 4, 4]


def test_a_dead_worker_of_the_simulation_is_the_engines_failure(tmp_path: Path) -> None:
    def dies(request: Message, reply: Message) -> Message:
        return Message(Error(0, "<class 'ray.exceptions.ActorDiedError'>"), reply_to=request)

    sites = three(a=dies)
    for site in sites:
        site.simulated = True
    bench = Bench(tmp_path)
    with pytest.raises(EngineError, match="a worker of the simulation died"):
        bench.apply(grid_of(*sites))


def test_what_is_known_is_not_asked_for_again(tmp_path: Path) -> None:
    first, told = Bench(tmp_path).apply(grid_of(*three()))
    sites = [StatisticsSite(name, 99.0) for name in "abc"]
    again, told_again = Bench(tmp_path).apply(grid_of(*sites))
    assert [site.asked for site in sites] == [[], [], []]
    assert all(again[name].tobytes() == first[name].tobytes() for name in MODEL)
    assert told_again == told
    # Another model's are not those.
    other = MODEL | {"weight": np.array([8.0], np.float32)}
    assert Bench(tmp_path).apply(grid_of(*sites), other)[0]["bn.running_mean"] == [99.0]


def test_damaged_results_are_set_aside_and_taken_again(tmp_path: Path) -> None:
    first, _ = Bench(tmp_path).apply(grid_of(*three()))
    (path,) = (tmp_path / "recalibrations").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    again, _ = Bench(tmp_path).apply(grid_of(*three()))
    assert again["bn.running_var"].tobytes() == first["bn.running_var"].tobytes()
    assert len(list(path.parent.glob("*.damaged"))) == 1


def test_replies_on_disk_count_for_the_next_process(tmp_path: Path) -> None:
    stored = StoredUpdates(tmp_path / "open")
    with pytest.raises(QuorumError):
        Bench(tmp_path, stored).apply(grid_of(*three(b=raises, c=raises)))
    sites = three()
    _, told = Bench(tmp_path, StoredUpdates(tmp_path / "open")).apply(grid_of(*sites))
    assert [len(site.asked) for site in sites] == [0, 1, 1]
    assert list(told["participants"]) == ["a", "b", "c"]
    assert list((tmp_path / "open").iterdir()) == []


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_bytes_exchanged_before_the_coordinator_died_are_counted(
    tmp_path: Path, answers: int
) -> None:
    def bench(name: str) -> Bench:
        return Bench(tmp_path / name, StoredUpdates(tmp_path / name / "open"))

    def federation() -> FakeGrid:
        grid = grid_of(*three(a=times(1, raises)))
        grid.arrival = list(NODE_IDS)  # so that a is asked twice before any other answers
        return grid

    _, whole = bench("whole").apply(federation())
    assert whole["sent_bytes"] == 4 * arrays_to_record(MODEL).count_bytes()
    with dies_at("exchange.gathering", "accepted", count=answers):
        bench("cut").apply(federation())
    sites = three()
    _, told = bench("cut").apply(grid_of(*sites))
    assert sum(len(site.asked) for site in sites) == 3 - answers
    keys = ("sent_bytes", "received_bytes", "participants")
    assert [told[key] for key in keys] == [whole[key] for key in keys]


def test_the_sites_evaluate_the_model_with_its_new_statistics(tmp_path: Path) -> None:
    grid = grid_of(*three())
    _, told = Bench(tmp_path, site_evaluation=True).apply(grid)
    assert told["site_evaluation"] == {NUM_VALIDATION: 6, VALIDATION_ACCURACY: 0.5}
    (sent, *_) = grid.sent_of_type(MessageType.EVALUATE)
    received = record_to_arrays(sent.content.array_records[ARRAYS])
    assert received["bn.running_var"] == [8.0]
    assert told["sent_bytes"] == 6 * arrays_to_record(MODEL).count_bytes()
