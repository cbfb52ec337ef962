"""A site with several processes: what happens when one of them ends, and runs beside others."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.app import Error, RecordDict

from mdc_flower.common.launch import Launch
from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.deployment.site import worker_process
from mdc_flower.engines import in_process
from mdc_flower.engines.flower_processes import free_port
from mdc_flower.site import own_worker
from mdc_flower.site.client import SiteClient
from mdc_flower.site.error_replies import error_of
from mdc_flower.site.resources import site_client
from strategies.common.errors import EngineError
from strategies.exchange.causes import Cause, cause_of
from strategies.exchange.lineage import Lineage
from strategies.exchange.messages import METRICS, SiteCard
from strategies.storage.model_files import read_model
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.test_worker import NEXT, NODE, PLANNED, ask, bits, order, site
from tests.tiny import KEYS

TWO = Launch(ranks=2)
NORMALIZED = {"model": "tests.tiny:normalized"}
KEEPING = {
    "model": "tests.tiny:noisy",
    "optimizer": "adamw",
    "optimizer-state": "keep",
    "keep": "4.*",
    "site-evaluation": True,
}
"""Dropout, and all that a site can keep."""

DEAD_S = 30.0
"""Longest time from the end of one process to the end of all."""


@pytest.fixture(scope="module")
def client() -> SiteClient:
    return site_client(read_run_config(KEYS | NORMALIZED), read_site_config(NODE))


@pytest.fixture(scope="module")
def keeping() -> SiteClient:
    return site_client(read_run_config(KEYS | KEEPING), read_site_config(NODE))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, client: SiteClient) -> dict[str, bytes]:
    """Return the model that two processes train without a fault."""
    with site(tmp_path_factory.mktemp("undisturbed") / "site", launch=TWO) as north:
        return bits(train(north.folder, client))


def train(folder: Path, client: SiteClient, **given: Any) -> RecordDict | Error:
    return ask(folder, order(client), keys=NORMALIZED, **given)


def error_in(asked: Callable[[], RecordDict | Error]) -> Error:
    """Return the error reply to a message."""
    try:
        answered = asked()
    except EngineError as error:  # the process that had the message is gone
        answered = error_of(error, private=True)
    assert isinstance(answered, Error)
    return answered


def processes(folder: Path) -> list[psutil.Process]:
    """Return all processes that were started with a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.integration
def test_a_site_with_two_processes_answers_every_message(
    tmp_path: Path, client: SiteClient, keeping: SiteClient
) -> None:
    with site(tmp_path / "site", launch=TWO) as north:
        card = ask(north.folder, RecordDict())
        first, second = (train(north.folder, client) for _ in range(2))
        late = ask(north.folder, order(client, deadline_s=1e-6), keys=NORMALIZED)
        failed = train(north.folder, client, node=NODE | {"data": "tests.tiny:nothing"})
        named = Lineage("1", "f" * 16).put_in(order(keeping))
        node = NODE | {"state": str(tmp_path / "state")}
        lost = ask(north.folder, named, keys=KEEPING, node=node)
        third = train(north.folder, client)
        assert len(processes(north.folder)) == 3, "the launcher and two ranks"
    assert isinstance(card, RecordDict)
    assert SiteCard.from_content(card).machine.startswith("2 ranks x ")
    assert bits(first) == bits(second) == bits(third)
    assert isinstance(first, RecordDict)
    # 22 of 24 examples in batches of 4, as with a single process.
    assert first.metric_records[METRICS]["num-steps"] == PLANNED.local_epochs * 6
    assert isinstance(late, Error)
    assert cause_of(late.code) is Cause.LATE
    assert isinstance(failed, Error)
    assert cause_of(failed.code) is Cause.CONFIG
    assert isinstance(lost, Error)
    assert cause_of(lost.code) is Cause.STATE_MISSING
    assert north.told == [], "errors of all processes alike do not end them"
    assert processes(north.folder) == []


POINTS = [
    Fault("rank-loads", "kill"),
    Fault("rank-steps", "kill", {"step": 5}),
    Fault("rank-saves", "kill"),
    Fault("rank-saved", "kill"),
    Fault("rank-steps", "kill", {"step": 7}),  # after the first epoch has been saved
    Fault("rank-gathers", "kill"),
    Fault("rank-gathered", "kill"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "shard"), [(0, True), (1, False)])
@fault(
    "one of the processes of a site killed while they train",
    "all of them end within half a minute and are started again; the site is asked once more and "
    "continues after the last saved epoch",
)
def test_a_killed_process_ends_all_and_the_site_continues_after_the_last_epoch(
    tmp_path: Path, keeping: SiteClient, monkeypatch: pytest.MonkeyPatch, rank: int, shard: bool
) -> None:
    monkeypatch.setattr(worker_process, "LONGEST_PAUSE_S", 1.0)
    launch = Launch(ranks=2, shard=shard)

    def ask_round(folder: Path, number: int, state: str) -> RecordDict | Error:
        planned, named = (PLANNED, "") if number == 1 else (NEXT, PLANNED.plan_id)
        content = Lineage("1", named).put_in(order(keeping, planned))
        return ask(folder, content, keys=KEEPING, node=NODE | {"state": str(tmp_path / state)})

    with site(tmp_path / "undisturbed", launch=launch) as north:
        expected = [told(ask_round(north.folder, number, "whole")) for number in (1, 2)]
    faults = [Fault(point.point, point.kind, {**point.where, "rank": rank}) for point in POINTS]
    with site(tmp_path / "site", *faults, launch=launch) as north:
        for number in range(len(faults)):
            before = processes(north.folder)
            failed = error_in(lambda: ask_round(north.folder, 1, "killed"))
            assert cause_of(failed.code) is Cause.SITE_FAILED
            marker = tmp_path / "site" / "faults" / f"faults.{number}.happened"
            _, alive = psutil.wait_procs(before, timeout=DEAD_S)
            assert alive == []
            assert time.time() - marker.stat().st_mtime < DEAD_S
        again = [told(ask_round(north.folder, number, "killed")) for number in (1, 2)]
    assert again == expected
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")
    assert north.events().count("rank-ended") == len(faults)
    assert north.events().count("continued") >= 3, "whenever an epoch has been saved"
    assert processes(north.folder) == []


def told(content: RecordDict | Error) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return what a reply says, but for the time that it took."""
    arrays = bits(content)
    assert isinstance(content, RecordDict)
    return arrays, dict(content.metric_records[METRICS]) | {"train-seconds": 0}


def kept(folder: Path) -> list[str]:
    """Return the names of what a site keeps: equal names are equal bytes."""
    return sorted(path.name for path in folder.iterdir() if ".reply." not in path.name)


@pytest.mark.integration
@fault(
    "the launcher of a site's processes killed",
    "all of them end and are started again; a message in progress is asked once more",
)
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, client: SiteClient) -> None:
    with site(tmp_path / "site", launch=TWO) as north:
        trained = train(north.folder, client)
        launcher = processes(north.folder)[0]
        assert "mdc_flower.site.launcher" in launcher.cmdline()
        ranks = launcher.children()
        assert len(ranks) == 2
        launcher.kill()
        _, alive = psutil.wait_procs(ranks, timeout=DEAD_S)
        assert alive == []
        again = train(north.folder, client)
    assert bits(trained) == bits(again)


@pytest.mark.integration
def test_a_site_with_two_processes_beside_sites_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, ranks: int) -> tuple[dict[str, bytes], dict[str, Any]]:
        real = in_process._context

        def context(run_id: int, node: int, config: Any, node_config: dict[str, int]) -> Any:
            own = {"ranks": ranks} if node_config.get("partition-id") == 1 else {}
            return real(run_id, node, config, node_config | own)

        keys = KEYS | KEEPING | {"output-dir": str(tmp_path / name), "max-restarts": 0}
        with monkeypatch.context() as patch:
            patch.setattr(in_process, "_context", context)
            in_process.run_in_process(read_run_config(keys), 3)
        arrays, _ = read_model(tmp_path / name / "global-model.safetensors")
        lines = (tmp_path / name / "history.jsonl").read_text().splitlines()
        return {key: array.tobytes() for key, array in arrays.items()}, json.loads(lines[-1])

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    first, record = run("first", 2)
    second, _ = run("second", 2)
    single, alone = run("single", 1)
    assert first == second
    assert first != single
    assert list(record["participants"]) == ["site-0", "site-1", "site-2"]
    assert record["began_anew"] == []
    assert record["machines"]["site-1"] == f"2 ranks x {record['machines']['site-0']}"
    steps = [line["participants"]["site-1"]["num-steps"] for line in (record, alone)]
    assert steps[0] == steps[1]
    assert own_worker._started == []


@pytest.mark.slow
@fault(
    "a process on another machine of the same site killed",
    "all of the site's processes end and are started again; the site is asked once more",
)
def test_a_site_on_two_machines(
    tmp_path: Path, client: SiteClient, undisturbed: dict[str, bytes]
) -> None:
    launch = Launch(ranks=1, nodes=2, rendezvous=f"127.0.0.1:{free_port()}")
    with (
        site(tmp_path / "first", launch=launch) as first,
        site(tmp_path / "second", launch=launch, node_rank=1) as second,
    ):
        trained = train(first.folder, client)
        (launcher,) = [p for p in processes(second.folder) if "launcher" in " ".join(p.cmdline())]
        launcher.children()[0].kill()
        failed = error_in(lambda: train(first.folder, client))
        again = train(first.folder, client)
    assert cause_of(failed.code) is Cause.SITE_FAILED
    assert bits(trained) == bits(again) == undisturbed
