"""The worker of a real site: its answers, and what happens when it ends, hangs or grows."""

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, MessageType, RecordDict

from mdc_flower.common.launch import Launch
from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.console.site_log import SITE_LOG
from mdc_flower.deployment.site.site import SiteView
from mdc_flower.deployment.site.worker_process import SINGLE, WorkerProcess
from mdc_flower.engines.flower_processes import environment
from mdc_flower.site import handover, worker
from mdc_flower.site.answering import answer
from mdc_flower.site.client import SiteClient
from mdc_flower.site.error_replies import error_of
from mdc_flower.site.handover import hand_over
from mdc_flower.site.resources import site_client
from strategies.common.errors import EngineError
from strategies.exchange.causes import Cause, cause_of
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    arrays_to_record,
    record_to_arrays,
    train_content,
)
from strategies.method.round_plan import RoundPlan
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.injector import plan as fault_plan
from tests.mdc_flower.examples import plan
from tests.tiny import KEYS

NODE: dict[str, Any] = {"site": "north", "modules": "tests.tiny", "threads": 1}
PLANNED = plan(local_epochs=2, lr_max=0.1, lr_min=0.05, shape="cosine")
NEXT = plan(round=2, local_epochs=2, lr_max=0.1, lr_min=0.05, shape="cosine")
HANGS = Fault("training", "hang", {"round": PLANNED.round}, repeat=True)
RUN_ID = 7


@pytest.fixture(scope="module")
def client() -> SiteClient:
    return site_client(read_run_config(KEYS), read_site_config(NODE))


def order(
    client: SiteClient, planned: RoundPlan = PLANNED, deadline_s: float = 100.0
) -> RecordDict:
    """Return a train message's content."""
    model = dict(zip(client.names, client.get_parameters({}), strict=True))
    return train_content(arrays_to_record(model), planned, deadline_s)


def ask(
    folder: Path,
    content: RecordDict,
    run_id: int = RUN_ID,
    keys: Any = None,
    node: dict[str, Any] = NODE,
    life_s: float = 300.0,
) -> RecordDict | Error:
    kind = MessageType.TRAIN if ARRAYS in content.array_records else MessageType.QUERY
    return hand_over(folder, run_id, kind, content, KEYS | (keys or {}), node, life_s)


def bits(content: RecordDict | Error) -> dict[str, bytes]:
    assert isinstance(content, RecordDict), content.reason
    arrays = record_to_arrays(content.array_records[ARRAYS])
    return {name: array.tobytes() for name, array in arrays.items()}


class Site:
    """A worker that is looked after, as by `mdc site start`."""

    def __init__(
        self, folder: Path, faults: Sequence[Fault], launch: Launch, node_rank: int
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder / "worker"
        self.told: list[str] = []
        self._events = folder / "events.jsonl"
        env = {
            **environment(folder),
            SITE_LOG: str(self._events),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **(fault_plan(folder / "faults", faults) if faults else {}),
        }
        tell = self.told.append
        log_path = folder / "log"
        self.process = WorkerProcess(self.folder, env, log_path, tell, launch, node_rank)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self._events.read_text().splitlines()]

    def pid(self) -> int:
        """Return the process id of the idle worker; it gets no message."""
        connection, pid = handover._connect(self.folder, time.monotonic() + 100)
        connection.close()
        return pid


@contextmanager
def site(
    folder: Path, *faults: Fault, launch: Launch = SINGLE, node_rank: int = 0
) -> Iterator[Site]:
    started, stop = Site(folder, faults, launch, node_rank), threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            started.process.look()

    with started.process:
        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield started
        finally:
            stop.set()
            watcher.join()


def test_a_worker_answers_as_this_process_does(tmp_path: Path, client: SiteClient) -> None:
    # The path is longer than a socket's may be.
    with site(tmp_path / ("a-long-name-of-a-kit-" * 6)) as north:
        first = north.pid()
        card = ask(north.folder, RecordDict())
        trained = [ask(north.folder, order(client)) for _ in range(2)]
        failed = ask(north.folder, order(client), keys={"model": "unknown"})
        last = north.pid()
    here = answer(MessageType.TRAIN, order(client), KEYS, NODE)
    assert bits(trained[0]) == bits(trained[1]) == bits(here)
    assert isinstance(trained[0], RecordDict)
    assert isinstance(here, RecordDict)
    metrics = [dict(content.metric_records[METRICS]) for content in (trained[0], here)]
    assert metrics[0] | {"train-seconds": 0} == metrics[1] | {"train-seconds": 0}
    assert card == answer(MessageType.QUERY, RecordDict(), KEYS, NODE)
    expected = answer(MessageType.TRAIN, order(client), KEYS | {"model": "unknown"}, NODE)
    assert isinstance(failed, Error)
    assert isinstance(expected, Error)
    assert (failed.code, failed.reason) == (expected.code, expected.reason)
    assert (last, north.told) == (first, [])


@fault(
    "a real site's worker killed while it trains",
    "it is started again, and the site is asked once more",
)
def test_a_worker_that_is_killed_is_started_again(tmp_path: Path, client: SiteClient) -> None:
    with site(tmp_path / "site", Fault("training", "kill")) as north:
        with pytest.raises(EngineError, match="worker ended before it answered") as caught:
            ask(north.folder, order(client))
        again = ask(north.folder, order(client))
    assert bits(again) == bits(answer(MessageType.TRAIN, order(client), KEYS, NODE))
    assert north.told == ["the worker ended (SIGKILL); it is started again in 1 s"]
    assert cause_of(error_of(caught.value, private=True).code) is Cause.SITE_FAILED


@pytest.mark.integration
@pytest.mark.parametrize(
    ("point", "event"),
    [
        pytest.param(
            Fault("epoch-saved", "kill", {"epoch": 1}), "continued",
            marks=fault(
                "a real site's worker killed between two local epochs",
                "the site is asked once more and continues after the last saved epoch",
            ),
        ),
        pytest.param(
            Fault("reply-kept", "kill"), "sent-again",
            marks=fault(
                "a real site's worker killed before its finished update is sent",
                "the site is asked once more and sends the same update without training",
            ),
        ),
    ],
    ids=["between-epochs", "before-sending"],
)  # fmt: skip
def test_a_killed_worker_does_not_train_its_round_anew(
    tmp_path: Path, client: SiteClient, point: Fault, event: str
) -> None:
    node = NODE | {"state": str(tmp_path / "round")}
    with site(tmp_path / "site", point) as north:
        with pytest.raises(EngineError, match="worker ended before it answered"):
            ask(north.folder, order(client), node=node)
        again = ask(north.folder, order(client), node=node)
    assert bits(again) == bits(answer(MessageType.TRAIN, order(client), KEYS, NODE))
    assert event in north.events()


@pytest.mark.integration
@fault(
    "a real site's worker hangs",
    "it is killed half a minute after nobody waits for it any more, and started again",
    "the site's update of this round, unless it answers a second request in time",
)
def test_a_worker_that_hangs_is_killed_and_started_again(
    tmp_path: Path, client: SiteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "GRACE_S", 0.0)
    with site(tmp_path / "site", HANGS) as north:
        ask(north.folder, RecordDict())  # wait until it has started
        with pytest.raises(EngineError, match="worker hung and was stopped"):
            ask(north.folder, order(client), life_s=2.0)
        monkeypatch.undo()
        again = ask(north.folder, order(client, NEXT))
    assert bits(again) == bits(answer(MessageType.TRAIN, order(client, NEXT), KEYS, NODE))
    assert len(north.told) == 1


@pytest.mark.integration
def test_another_run_gets_a_new_worker(tmp_path: Path) -> None:
    with site(tmp_path / "site") as north:
        ask(north.folder, RecordDict())
        first = north.pid()
        ask(north.folder, RecordDict(), run_id=RUN_ID + 1)
        second = north.pid()
    assert first != second
    assert north.told == [], "the operator need not know"


@pytest.mark.integration
@fault(
    "Flower's process for a message killed while the worker answers",
    "the worker notices and is started again; the site is asked once more",
)
def test_a_worker_whose_message_is_abandoned_is_started_again(
    tmp_path: Path, client: SiteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(tmp_path / "site", HANGS) as north:
        first = north.pid()
        with monkeypatch.context() as patch:
            patch.setattr(handover, "GRACE_S", 0.0)
            patch.setattr(os, "kill", lambda pid, kind: None)
            with pytest.raises(EngineError):
                ask(north.folder, order(client), life_s=2.0)
        second = north.pid()
        assert north.events()[-1] == "worker-abandoned"
        again = ask(north.folder, order(client, NEXT))
    assert first != second
    assert north.told == []
    assert bits(again) == bits(answer(MessageType.TRAIN, order(client, NEXT), KEYS, NODE))


def test_a_worker_that_has_grown_ends_after_its_answer(
    tmp_path: Path, client: SiteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SITE_LOG, str(tmp_path / "events.jsonl"))
    monkeypatch.setattr(worker, "SPARE_BYTES", -(2**20))
    monkeypatch.setattr(worker, "GROWTH", 1.0)
    serving = threading.Thread(target=worker.serve, args=(tmp_path,))
    serving.start()
    assert bits(ask(tmp_path, order(client)))
    serving.join(60)
    assert not serving.is_alive()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "worker-grew"
    assert SiteView().line(events[-1]).startswith("the worker uses ")


def test_an_idle_worker_ends(
    tmp_path: Path, client: SiteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "IDLE_S", 0.2)
    serving = threading.Thread(target=worker.serve, args=(tmp_path,))
    serving.start()
    assert bits(ask(tmp_path, order(client)))
    serving.join(60)
    assert not serving.is_alive()


def test_a_message_that_cannot_be_read_gets_an_error_reply(
    tmp_path: Path, client: SiteClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "IDLE_S", 0.2)
    entry = {"key": "0-0", "name": "w", "dtype": "float32", "shape": [1], "stype": "numpy.ndarray"}
    monkeypatch.setattr(handover, "pack", lambda content, path: {"arrays": {"arrays": [entry]}})
    serving = threading.Thread(target=worker.serve, args=(tmp_path,))
    serving.start()
    failed = ask(tmp_path, order(client))
    serving.join(60)
    assert isinstance(failed, Error)
    assert "there is no model here" in str(failed.reason)
