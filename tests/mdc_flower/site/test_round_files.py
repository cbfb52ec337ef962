"""The files of a round at a site: which survive, which count, and what happens without them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, MessageType, RecordDict

from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.console.site_log import SITE_LOG
from mdc_flower.site.answering import answer
from mdc_flower.site.resources import site_client
from mdc_flower.site.round_files import RoundFiles, round_key
from mdc_flower.training.batches import Tensors
from mdc_flower.training.loop_state import LoopState
from mdc_flower.training.runtime import Saved
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    ORDERS,
    arrays_to_record,
    is_shortened,
    record_to_arrays,
    shortened,
    train_content,
)
from strategies.method.round_plan import RoundPlan
from tests.mdc_flower.examples import job_of, plan
from tests.tiny import KEYS

PLANNED = plan(local_epochs=3, lr_max=0.1, lr_min=0.05, shape="cosine")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SITE_LOG, str(tmp_path / "events.jsonl"))
    return tmp_path / "events.jsonl"


def kinds(log: Path) -> list[str]:
    return [json.loads(line)["event"] for line in log.read_text().splitlines()]


def node(folder: Path) -> dict[str, Any]:
    return {"site": "north", "modules": "tests.tiny", "threads": 1, "state": str(folder / "round")}


def order(plan: RoundPlan = PLANNED, deadline_s: float = 100.0) -> RecordDict:
    client = site_client(read_run_config(KEYS), read_site_config({"site": "north"}))
    model = dict(zip(client.names, client.get_parameters({}), strict=True))
    return train_content(arrays_to_record(model), plan, deadline_s)


def train(content: RecordDict, folder: Path, **keys: Any) -> RecordDict:
    reply = answer(MessageType.TRAIN, content, KEYS | keys, node(folder))
    assert isinstance(reply, RecordDict), reply.reason
    return reply


def files(folder: Path) -> list[str]:
    return [path.name.split(".")[1] for path in sorted((folder / "round").iterdir())]


def test_a_finished_update_is_sent_again_without_training(tmp_path: Path, log: Path) -> None:
    first = train(order(), tmp_path)
    again = train(order(deadline_s=50.0), tmp_path)
    assert again == shortened(first), "even the seconds that training took"
    assert (is_shortened(first), is_shortened(again)) == (False, True)
    assert kinds(log).count("trained") == 1
    assert kinds(log)[-1] == "sent-again"
    assert files(tmp_path) == ["reply"]
    (kept,) = (tmp_path / "round").iterdir()
    assert (kept.parent.stat().st_mode & 0o777) == 0o700


def test_another_round_replaces_the_files(tmp_path: Path, log: Path) -> None:
    first, second = order(), order(plan(round=2, local_epochs=3))
    train(first, tmp_path)
    train(second, tmp_path)
    assert len(files(tmp_path)) == 1
    train(first, tmp_path)
    assert kinds(log).count("trained") == 3


@pytest.mark.parametrize("change", ["cut", "changed"])
def test_a_damaged_file_is_ignored(tmp_path: Path, log: Path, change: str) -> None:
    first = train(order(), tmp_path)
    (kept,) = (tmp_path / "round").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] if change == "cut" else content[:-1] + b"?")
    again = train(order(), tmp_path)
    assert kinds(log).count("trained") == 2
    assert record_to_arrays(again.array_records[ARRAYS]).keys()
    assert [a.data for a in again.array_records[ARRAYS].values()] == [
        a.data for a in first.array_records[ARRAYS].values()
    ]


def test_a_folder_that_cannot_be_written_costs_no_update(tmp_path: Path, log: Path) -> None:
    (tmp_path / "round").write_text("not a folder")
    reply = train(order(), tmp_path)
    assert reply.metric_records[METRICS]["num-examples"]
    assert kinds(log)[-1] == "trained"


def test_an_epoch_is_saved_only_if_saving_takes_little_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("mdc_flower.site.round_files.time.monotonic", lambda: now[0])
    found, saved = RoundFiles(tmp_path, "key"), []
    for epoch, seconds in enumerate((10.0, 10.0, 189.0, 2.0, 150.0), 1):
        now[0] += seconds
        saved.append(found.is_due())
        if saved[-1]:
            now[0] += 2.0  # seconds that collecting the state takes
            found.write(({"array": np.zeros(1)}, {"epoch": epoch}))
    # The first time nobody knows what saving costs; then 200 s must pass.
    assert saved == [True, False, False, True, False]


def changed(content: RecordDict, record: str, key: str, value: Any) -> RecordDict:
    content.config_records[record] = ConfigRecord({**content.config_records[record], key: value})
    return content


def test_the_key_covers_all_that_an_update_depends_on() -> None:
    about = [{"seed": 1}, {"site": "north"}, 24]
    key = round_key(order(), about)
    assert key == round_key(order(deadline_s=3.0), about), "a deadline changes no bit"
    other_model = order()
    arrays = record_to_arrays(other_model.array_records[ARRAYS])
    arrays = {name: array + 1 for name, array in arrays.items()}
    others = [
        round_key(order(plan(local_epochs=4)), about),
        round_key(train_content(arrays_to_record(arrays), PLANNED, 100.0), about),
        round_key(changed(order(), ORDERS, "evaluate", True), about),
        round_key(order(), [{"seed": 2}, *about[1:]]),
        round_key(order(), [*about[:2], 25]),
    ]
    assert len({key, *others}) == 6


def test_training_continues_after_the_last_saved_epoch(tmp_path: Path, log: Path) -> None:
    whole = train(order(), tmp_path)
    (tmp_path / "round").rename(tmp_path / "old")

    class Stopped(RoundFiles):
        def write(self, saved: Saved) -> None:
            super().write(saved)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdc_flower.site.answers.RoundFiles", Stopped)
        with pytest.raises(KeyboardInterrupt):
            train(order(), tmp_path)
    assert files(tmp_path) == ["epoch"]
    again = train(order(), tmp_path)
    assert [a.data for a in again.array_records[ARRAYS].values()] == [
        a.data for a in whole.array_records[ARRAYS].values()
    ]
    (event,) = [json.loads(line) for line in log.read_text().splitlines() if '"continued"' in line]
    assert event["epoch"] == 1
    assert is_shortened(again)
    assert files(tmp_path) == ["reply"]


def test_files_of_others_stay(tmp_path: Path, log: Path) -> None:
    (tmp_path / "round").mkdir()
    others = [tmp_path / "round" / name for name in ("model.safetensors", "a.reply.safetensors")]
    for other in others:
        other.write_text("precious")
    train(order(), tmp_path)
    train(order(plan(round=2)), tmp_path)
    assert all(other.read_text() == "precious" for other in others)


def test_a_state_that_cannot_be_restored_fails_once(tmp_path: Path, log: Path) -> None:
    def stops(self: RoundFiles, saved: Saved) -> None:
        write(self, saved)
        raise KeyboardInterrupt

    write = RoundFiles.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundFiles, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            train(order(), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoopState, "restore", lambda *args: 1 / 0)
        failed = answer(MessageType.TRAIN, order(), KEYS, node(tmp_path))
    assert isinstance(failed, Error)
    assert "the saved epoch cannot be restored: ZeroDivisionError" in str(failed.reason)
    assert train(order(), tmp_path)


@pytest.mark.parametrize(
    ("keys", "is_kept"),
    [({"resume": True}, True), ({"epoch-budget": 9}, True), ({"batch-size": 3}, False)],
    ids=str,
)
def test_only_what_changes_the_update_makes_a_site_train_anew(
    tmp_path: Path, log: Path, keys: dict[str, Any], is_kept: bool
) -> None:
    train(order(), tmp_path)
    train(order(), tmp_path, **keys)
    assert (kinds(log)[-1] == "sent-again") == is_kept


def test_corrected_labels_make_a_site_train_anew(tmp_path: Path) -> None:
    client = site_client(read_run_config(KEYS), read_site_config({"site": "north"}))
    data = client.job.splits["train"]  # type: ignore[attr-defined]
    labels = data.labels.clone()
    labels[3] = 1 - labels[3]
    inputs = data.inputs[0 : len(data)].clone()
    inputs[0] += 1.0
    others = [Tensors(data.inputs, labels), Tensors(inputs, data.labels)]
    prints = {job_of(split).fingerprint() for split in (data, *others)}
    assert len(prints) == 3
