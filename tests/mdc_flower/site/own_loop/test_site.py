"""`mdc_flower.site()` in a script that a site keeps alive, and what such a site refuses."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, MessageType, RecordDict
from numpy.typing import NDArray

from mdc_flower.config import read_site_config
from mdc_flower.site.answering import answer
from mdc_flower.site.own_loop.asking import close_commands
from strategies.common.errors import ConfigError
from strategies.exchange.causes import Cause, cause_of
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    STATISTICS,
    SiteCard,
    arrays_to_record,
    evaluate_content,
    record_to_arrays,
    statistics_content,
    train_content,
)
from tests.mdc_flower.examples import plan
from tests.own_loop import python

KEYS = {"num-sites": 1}
MODEL: dict[str, NDArray[Any]] = {
    "weight": np.arange(3, dtype=np.float32),
    "count": np.array(4, np.int64),
}

SCRIPT = """
import os
import subprocess
import subprocess
import sys

import mdc_flower

def evaluate(round):
    return 3, {"loss": float(round.arrays["weight"].sum()), "accuracy": float("nan")}

with mdc_flower.site(evaluate) as site:
    for round in site.rounds():
        subprocess.run(["cat"], check=True)  # must not read the site's lines
        if sys.argv[1:] == ["forgets"]:
            continue
        arrays = round.arrays
        weight = arrays["weight"] * round.lr_at(0, 5) + round.number
        round.progress(process=os.getpid())
        round.send({**arrays, "weight": weight}, num_examples=9, num_steps=5)
print("torch" in sys.modules, "no more rounds")
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[dict[str, Any]]:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = python(tmp_path / "script.py")
    yield {"site": "north", "command": command, "state": str(tmp_path / "state")}
    close_commands()


def order(number: int = 1, evaluate: bool = False) -> RecordDict:
    planned = plan(round=number, local_epochs=1, lr_max=0.5, lr_min=0.1)
    return train_content(arrays_to_record(MODEL), planned, 100.0, evaluate)


def test_one_script_trains_and_evaluates_until_there_are_no_more_rounds(
    node: dict[str, Any], tmp_path: Path
) -> None:
    first = answer(MessageType.TRAIN, order(1, evaluate=True), KEYS, node)
    second = answer(MessageType.TRAIN, order(2), KEYS, node)
    last = answer(MessageType.EVALUATE, evaluate_content(arrays_to_record(MODEL)), KEYS, node)
    close_commands()
    for number, reply in ((1, first), (2, second)):
        assert isinstance(reply, RecordDict), reply.reason
        arrays = record_to_arrays(reply.array_records[ARRAYS])
        assert list(arrays) == ["weight", "count"]
        assert arrays["weight"].tolist() == [number, number + 0.5, number + 1.0]
        assert arrays["count"].shape == ()
    assert isinstance(first, RecordDict)
    assert isinstance(last, RecordDict)
    validated = {"num-validation-examples": 3, "validation-loss": 3.0}
    assert dict(last.metric_records[METRICS]) == validated
    metrics = dict(first.metric_records[METRICS])
    assert metrics.pop("train-seconds")
    assert metrics == {"num-examples": 9, "num-steps": 5, **validated}
    log = (tmp_path / "state" / "own-loop" / "command.log").read_text()
    assert log == "False no more rounds\n", "one process for all, without PyTorch"


def test_a_script_that_forgets_to_send_is_told(node: dict[str, Any], tmp_path: Path) -> None:
    node["command"] += " forgets"
    failed = answer(MessageType.TRAIN, order(), KEYS, node)
    assert isinstance(failed, Error)
    assert "the command ended without a result (got 'exit status 1'" in str(failed.reason)
    log = (tmp_path / "state" / "own-loop" / "command.log").read_text()
    assert "round 1: the round ended without a model. Call round.send(...)" in log


def test_an_update_of_fewer_or_more_examples_than_agreed_is_not_sent(node: dict[str, Any]) -> None:
    for bounds in ({"min-examples": 10, "max-examples": 20}, {"max-examples": 8}):
        failed = answer(MessageType.TRAIN, order(), KEYS, node | bounds)
        assert isinstance(failed, Error)
        assert cause_of(failed.code) is Cause.DATA


def test_only_metrics_that_the_site_shares_leave_it(node: dict[str, Any]) -> None:
    reply = answer(MessageType.TRAIN, order(), KEYS, node | {"metrics": "num-examples"})
    assert isinstance(reply, RecordDict)
    assert dict(reply.metric_records[METRICS]) == {"num-examples": 9}


def test_a_card_says_the_most_that_was_agreed(node: dict[str, Any]) -> None:
    reply = answer(MessageType.QUERY, RecordDict(), KEYS, node | {"max-examples": 70})
    assert isinstance(reply, RecordDict)
    card = SiteCard.from_content(reply)
    assert (card.name, card.num_examples, card.machine) == ("north", 70, "")


@pytest.mark.parametrize(
    ("keys", "own", "told"),
    [
        ({"batch-norm": "recalibrate"}, {}, "batch-norm: this site trains with a command"),
        ({"exchange": "trainable"}, {}, "exchange: this site trains with a command"),
        ({"proximal-mu": 0.1}, {}, "proximal-mu: this site trains with a command"),
        ({}, {"command": "no-such-program 1"}, "the command's program does not exist"),
        ({}, {"command": "python 'open"}, "the command cannot be split into words"),
    ],
)
def test_what_a_command_cannot_do_is_refused_when_the_run_begins(
    node: dict[str, Any], keys: dict[str, Any], own: dict[str, Any], told: str
) -> None:
    failed = answer(MessageType.QUERY, RecordDict(), KEYS | keys, node | own)
    assert isinstance(failed, Error)
    assert cause_of(failed.code) is Cause.CONFIG
    assert told in str(failed.reason)


def test_statistics_are_refused(node: dict[str, Any]) -> None:
    content = statistics_content(arrays_to_record(MODEL), "id", 10.0)
    failed = answer(STATISTICS, content, KEYS, node)
    assert isinstance(failed, Error)
    assert "sends no BatchNorm statistics" in str(failed.reason)


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"data": "digits"}, "data and command exclude each other"),
        ({"job": "lab:job"}, "job and command exclude each other"),
        ({"threads": 2}, "threads and command exclude each other"),
        ({"min-examples": 5}, "min-examples with a command needs max-examples"),
        ({"site": "", "partition-id": 0, "num-partitions": 2}, "only a real site can have"),
    ],
)
def test_settings_that_a_command_does_not_use_are_refused(own: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_site_config({"site": "north", "command": sys.executable, **own})


def test_the_plan_is_written_for_any_language(node: dict[str, Any], tmp_path: Path) -> None:
    answer(MessageType.TRAIN, order(3), KEYS, node)
    (folder,) = (tmp_path / "state" / "own-loop").glob("round-*")
    written = json.loads((folder / "plan.json").read_text())
    assert written.pop("deadline") > 1.7e9
    assert 90 < written.pop("deadline_s") <= 100
    assert 0 <= written.pop("seed") < 2**31
    assert written == {
        "protocol": 3, "kind": "train", "site": "north", "round": 3, "local_epochs": 1,
        "local_parts": 0, "parts_before": 0, "local_steps": 0, "steps_before": 0,
        "lr_max": 0.5, "lr_min": 0.1, "shape": "constant", "run_start": 0.0, "run_end": 1.0,
    }  # fmt: skip
    assert folder.stat().st_mode & 0o077 == 0


def test_a_site_with_a_command_answers_without_pytorch() -> None:
    code = (
        "import sys, mdc_flower.site.worker, mdc_flower.site.own_loop.answers; "
        "import mdc_flower.site.own_loop.site; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_name_of_the_package_does_not_import_what_it_can_do() -> None:
    code = "import sys, mdc_flower; sys.exit(len([m for m in sys.modules if 'flower' in m]) > 1)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
