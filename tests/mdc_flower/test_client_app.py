"""The ClientApp: Flower messages in, Flower messages out, and an error reply for every failure."""

import gc
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from numpy.typing import NDArray
from PIL import Image

import mdc_flower
from mdc_flower.client_app import app
from mdc_flower.common.cores import usable_cores
from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.console.site_log import SITE_LOG
from mdc_flower.data import load_dataset
from mdc_flower.data.contract import Contract
from mdc_flower.jobs.task import load_site_task, load_task
from mdc_flower.site.card import code_digests
from mdc_flower.site.error_replies import TRACE_CALLS, TRACE_LINES, without_paths
from mdc_flower.site.resources import site_client
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.loop import EvalResult
from mdc_flower.training.numerics import processor
from strategies.aggregation.averaging import Update
from strategies.common.errors import ConfigError, DataError, MdcError, PlanError
from strategies.exchange.causes import Cause, cause_of
from strategies.exchange.gate import Rejection, judge_evaluate, judge_train
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    ORDERS,
    PLAN,
    STATISTICS,
    SiteCard,
    arrays_to_record,
    evaluate_content,
    record_to_arrays,
    statistics_content,
    train_content,
)
from strategies.exchange.metrics import TRAIN_METRICS, VALIDATION_METRICS, numbers
from strategies.method.round_plan import RoundPlan
from tests.mdc_flower.examples import plan

pytestmark = pytest.mark.usefixtures("identity")

NODE = 8_243_971_190_237_113_041
PLANNED = plan(lr_max=0.1, lr_min=0.05, shape="cosine")
RUN: dict[str, Any] = {
    "dataset": "digits",
    "model": "mlp",
    "max-train-examples": 100,
    "precision": "none",
}
LAB = """
import numpy as np
from mdc_flower.data import DataSet, Examples

def halves():
    images = np.zeros((40, 1, 8, 8), np.uint8)
    examples = Examples(images, np.arange(40) % 10)
    return DataSet("halves", examples, examples, [str(label) for label in range(10)])

def broken():
    raise OSError("the scanner is off")

def patient():
    raise ValueError("Jane Doe, born 1970, has no scan in /data/jane")

def deep():
    def look_up(table):
        return table["Jane Doe"]
    return look_up({})

def caused():
    try:
        broken()
    except OSError as error:
        raise RuntimeError("Jane's scan") from error

clock = [1000.0]

def slow():
    clock[0] += 50.0
    return halves()

built = []

def counted(shape, classes):
    import weakref
    model = noisy(shape, classes)
    built.append(weakref.ref(model))
    return model

def noisy(shape, classes):
    from torch import nn
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, classes)
    )
"""


@pytest.fixture(autouse=True)
def client_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a site's own modules where Python finds them."""
    (tmp_path / "client_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def site_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the site write its event log."""
    monkeypatch.setenv(SITE_LOG, str(tmp_path / "site-log.jsonl"))
    return tmp_path / "site-log.jsonl"


def events(site_log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in site_log.read_text().splitlines()]


def context(node_config: dict[str, Any] | None = None, **run_keys: Any) -> Context:
    """Return the context of partition 0 of 2, or of another node."""
    node: dict[str, Any] = {"partition-id": 0, "num-partitions": 2}
    node = node if node_config is None else node_config
    run = RUN | {key.replace("_", "-"): value for key, value in run_keys.items()}
    return Context(run_id=22, node_id=NODE, node_config=node, state=RecordDict(), run_config=run)


def ask(kind: str, content: RecordDict, where: Context) -> Message:
    """Return the app's reply, having checked that it goes back where the message came from."""
    message = Message(content, dst_node_id=NODE, message_type=kind, group_id="1")
    reply = app(message, where)
    assert reply.metadata.src_node_id == NODE
    assert reply.metadata.dst_node_id == message.metadata.src_node_id
    assert reply.metadata.message_type == kind
    return reply


def initial(**run_keys: Any) -> dict[str, NDArray[np.generic]]:
    values = RUN | {key.replace("_", "-"): value for key, value in run_keys.items()}
    return model_arrays(load_task(read_run_config(values)).new_model())


def ask_to_train(
    where: Context,
    orders: RoundPlan = PLANNED,
    arrays: dict[str, NDArray[Any]] | None = None,
    deadline_s: float = 600.0,
    evaluate: bool = False,
) -> Message:
    model = initial() if arrays is None else arrays
    content = train_content(arrays_to_record(model), orders, deadline_s, evaluate)
    return ask(MessageType.TRAIN, content, where)


def train_message() -> RecordDict:
    return train_content(arrays_to_record(initial()), PLANNED, 600.0)


def trained(reply: Message) -> dict[str, bytes]:
    arrays = record_to_arrays(reply.content.array_records[ARRAYS])
    return {name: array.tobytes() for name, array in arrays.items()}


def reason(reply: Message) -> str:
    assert reply.has_error()
    assert reply.error.reason is not None
    assert "Traceback" not in reply.error.reason
    return reply.error.reason


@pytest.mark.parametrize(
    ("node", "card"),
    [
        ({"partition-id": 3, "num-partitions": 5}, ("site-3", 5, True)),
        ({"site": "north"}, ("north", 0, False)),
    ],
)
def test_a_hello_is_answered_with_the_sites_card(
    node: dict[str, Any], card: tuple[str, int, bool]
) -> None:
    name, num_partitions, simulated = card
    told = card_of(context(node, threads_per_site=3, precision="bf16"))
    assert told == SiteCard(
        name,
        num_partitions,
        mdc_flower.__version__,
        simulated,
        device=processor(),
        number_format="bfloat16",
        threads=3 if simulated else usable_cores(),
        keeps_state=simulated,
        data_form=told.data_form,
        data_sha256=told.data_sha256,
    )
    assert bool(told.data_form) != simulated
    assert bool(told.data_sha256) == simulated
    assert told.machine.startswith(f"{processor()}, bfloat16, ")


def card_of(where: Context) -> SiteCard:
    return SiteCard.from_content(ask(MessageType.QUERY, RecordDict(), where).content)


def test_a_card_says_which_code_the_sites_own_modules_are(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"model": "client_lab:noisy", "dataset": "client_lab:halves"}
    told = card_of(context(**keys))
    digest = code_digests(read_run_config(RUN | keys))["model"]
    assert (told.model_code, told.dataset_code) == (digest, digest)
    assert len(digest) == 64
    # A site with data of its own does not use the run's, and tells nothing of what it forbids.
    own = {"site": "north", "data": "digits"}
    assert card_of(context(own, **keys)).dataset_code == ""
    assert card_of(context({**own, "modules": ""}, **keys)).model_code == ""
    assert card_of(context()).model_code == ""


def test_a_site_whose_device_is_not_there_says_so_in_its_answer_to_a_hello() -> None:
    where = context({"site": "north", "device": "abacus"})
    assert "device: this machine has no such device" in reason(
        ask(MessageType.QUERY, RecordDict(), where)
    )


def test_a_hello_needs_no_data() -> None:
    reply = ask(MessageType.QUERY, RecordDict(), context(dataset="no-such-data"))
    assert reply.has_content()


def test_a_train_message_is_answered_with_an_update_that_counts() -> None:
    arrays = initial()
    reply = ask_to_train(context())
    verdict = judge_train(reply, "site-0", PLANNED.plan_id, arrays)
    assert isinstance(verdict, Update), verdict
    # 100 examples at two sites: 50, of which 5 are held out; 45 = 32 + 13, two steps.
    assert (verdict.num_examples, verdict.metrics["num-steps"]) == (45, 2)
    assert list(verdict.arrays) == list(arrays)
    assert all((verdict.arrays[name] != arrays[name]).any() for name in arrays)


def test_nothing_leaves_a_site_but_arrays_metrics_and_the_plans_id() -> None:
    content = ask_to_train(context()).content
    assert set(content.array_records) == {"arrays"}
    assert set(content.metric_records) == {"metrics"}
    assert {name: dict(record) for name, record in content.config_records.items()} == {
        "reply": {"plan-id": PLANNED.plan_id}
    }


def test_the_same_message_is_answered_with_the_same_bits_whatever_came_between() -> None:
    where = context()
    first = trained(ask_to_train(where))
    other = trained(ask_to_train(where, plan(round=2, lr_max=0.1, lr_min=0.05, shape="cosine")))
    assert trained(ask_to_train(where)) == first
    assert other != first


def test_each_site_trains_on_its_own_part() -> None:
    other = context({"partition-id": 1, "num-partitions": 2})
    assert trained(ask_to_train(other)) != trained(ask_to_train(context()))


def test_a_real_site_uses_its_own_data_set() -> None:
    reply = ask_to_train(context({"site": "north", "data": "client_lab:halves"}))
    # 40 examples, of which 4 are held out.
    assert reply.content.metric_records["metrics"]["num-examples"] == 36


def test_a_real_site_looks_for_data_in_its_own_root(tmp_path: Path, site_log: Path) -> None:
    node = {"site": "north", "data": "cifar10", "data-root": str(tmp_path / "mine")}
    reply = ask_to_train(context(node, data_root=str(tmp_path / "the-runs")))
    # Where that is, is said in the site's own log alone.
    assert str(tmp_path) not in reason(reply)
    (failed,) = events(site_log)
    assert str(tmp_path / "mine") in failed["error"]
    assert str(tmp_path / "the-runs") not in failed["error"]


def test_an_evaluate_message_is_answered_with_metrics_of_the_sites_validation_examples() -> None:
    reply = ask(MessageType.EVALUATE, evaluate_content(arrays_to_record(initial())), context())
    verdict = judge_evaluate(reply, "site-0")
    assert not isinstance(verdict, Rejection), verdict
    assert set(verdict.metrics) == VALIDATION_METRICS
    assert verdict.num_examples == verdict.metrics["num-validation-examples"] == 5
    known = numbers(verdict.metrics)
    accuracy = known["validation-accuracy"]
    assert 0 <= accuracy <= 1
    assert accuracy * 5 == pytest.approx(round(accuracy * 5))
    assert known["validation-loss"] > 0


def metrics_of(reply: Message) -> dict[str, Any]:
    assert reply.has_content(), reply.error.reason
    return dict(reply.content.metric_records[METRICS])


def test_a_site_that_is_told_to_evaluates_the_model_it_is_sent_before_it_trains() -> None:
    where = context()
    told, untold = ask_to_train(where, evaluate=True), ask_to_train(where)
    alone = ask(MessageType.EVALUATE, evaluate_content(arrays_to_record(initial())), where)
    assert set(metrics_of(told)) == TRAIN_METRICS
    assert set(metrics_of(untold)) == TRAIN_METRICS - VALIDATION_METRICS
    assert {name: metrics_of(told)[name] for name in VALIDATION_METRICS} == metrics_of(alone)
    assert trained(told) == trained(untold)
    for name in ("num-examples", "train-loss", "train-accuracy"):
        assert metrics_of(told)[name] == metrics_of(untold)[name]


def test_evaluation_leaves_no_trace_in_dropout_statistics_or_order() -> None:
    # A model with everything that has state or noise.
    keys: dict[str, Any] = {"model": "client_lab:noisy", "augment": "crop"}
    arrays, where = initial(**keys), context(**keys)
    told = ask_to_train(where, arrays=arrays, evaluate=True)
    assert trained(told) == trained(ask_to_train(where, arrays=arrays))
    assert any("running_var" in name for name in arrays)


@pytest.mark.parametrize(
    ("metrics", "shared"),
    [
        ("", TRAIN_METRICS),
        ("num-examples", {"num-examples"}),
        ("train-loss, validation-loss", {"num-examples", "train-loss", "validation-loss"}),
    ],
)
def test_only_the_metrics_that_a_site_shares_leave_it(metrics: str, shared: set[str]) -> None:
    where = context({"site": "north", "metrics": metrics})
    reply = ask_to_train(where, evaluate=True)
    assert set(metrics_of(reply)) == shared
    assert isinstance(judge_train(reply, "north", PLANNED.plan_id, initial()), Update)
    alone = ask(MessageType.EVALUATE, evaluate_content(arrays_to_record(initial())), where)
    assert set(metrics_of(alone)) == shared & VALIDATION_METRICS
    assert not isinstance(judge_evaluate(alone, "north"), Rejection)


def test_a_site_without_validation_examples_still_gives_its_update() -> None:
    # One example: it is trained on, and none is left to evaluate.
    where = context({"site": "north"}, max_train_examples=1)
    reply = ask_to_train(where, evaluate=True)
    assert set(metrics_of(reply)) == TRAIN_METRICS - VALIDATION_METRICS
    assert isinstance(judge_train(reply, "north", PLANNED.plan_id, initial()), Update)
    alone = ask(MessageType.EVALUATE, evaluate_content(arrays_to_record(initial())), where)
    assert judge_evaluate(alone, "north") == Update("north", 0, {}, {})


SUMS = {"loss": [5.0, 5.0], "accuracy": [1.0, 5.0]}


def test_a_model_whose_loss_is_no_number_costs_no_site_its_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "mdc_flower.site.client.evaluate",
        lambda *args: EvalResult(5, math.inf, {"accuracy": 0.2}, {**SUMS, "loss": [math.inf, 5.0]}),
    )
    reply = ask_to_train(context(), evaluate=True)
    assert {name: metrics_of(reply).get(name) for name in VALIDATION_METRICS} == {
        "num-validation-examples": 5,
        "validation-accuracy": 0.2,
        "validation-loss": None,
    }
    assert isinstance(judge_train(reply, "site-0", PLANNED.plan_id, initial()), Update)


@pytest.mark.parametrize("kind", [MessageType.TRAIN, STATISTICS])
def test_the_deadline_counts_from_the_arrival_of_the_message_while_data_are_read(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import client_lab  # type: ignore[import-not-found]

    clock = SimpleNamespace(monotonic=lambda: client_lab.clock[0])
    for module in ("site.answers", "site.client", "training.loop", "training.batch_norm"):
        monkeypatch.setattr(f"mdc_flower.{module}.time", clock)
    keys: dict[str, Any] = {"dataset": "client_lab:slow", "model": "client_lab:noisy"}
    where = context(batch_norm="recalibrate", **keys)
    arrays = arrays_to_record(initial(**keys))

    def reply(deadline_s: float) -> Message:
        load_dataset.cache_clear()
        load_task.cache_clear()
        load_site_task.cache_clear()
        train = train_content(arrays, PLANNED, deadline_s)
        content = (
            train if kind == MessageType.TRAIN else statistics_content(arrays, "p", deadline_s)
        )
        return ask(kind, content, where)

    assert reply(51.0).has_content()
    assert "DeadlineError" in reason(reply(50.0))
    # What is at hand takes no time.
    content = train_content(arrays, PLANNED, 50.0)
    assert ask(MessageType.TRAIN, content, where).has_content()


def test_the_simulated_sites_of_a_process_share_one_data_set_and_keep_no_model() -> None:
    keys: dict[str, Any] = {"model": "client_lab:counted", "dataset": "client_lab:halves"}
    import client_lab

    arrays = initial(**keys)
    run = read_run_config(RUN | keys)
    sites = [context({"partition-id": site, "num-partitions": 10}, **keys) for site in range(10)]
    first = [trained(ask_to_train(site, arrays=arrays)) for site in sites]
    again = [trained(ask_to_train(site, arrays=arrays)) for site in sites]
    assert first == again
    assert client_lab.built
    assert len({tuple(sorted(one.items())) for one in first}) == len(sites)
    gc.collect()
    assert not [model for model in client_lab.built if model() is not None]
    clients = [site_client(run, read_site_config(site.node_config)) for site in sites]
    jobs = [one.job for one in clients]
    splits = [split for job in jobs for split in job.splits.values()]  # type: ignore[attr-defined]
    assert sum(map(len, splits)) == 40
    inputs = [split.inputs for split in splits]
    assert len({id(stored.array) for stored in inputs}) == 1


def test_the_time_for_evaluation_is_taken_from_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]

    def slow(*args: Any) -> EvalResult:
        now[0] += 50.0
        return EvalResult(5, 1.0, {"accuracy": 0.2}, SUMS)

    monkeypatch.setattr("mdc_flower.site.client.evaluate", slow)
    for module in ("site.answers", "site.client", "training.loop"):
        clock = SimpleNamespace(monotonic=lambda: now[0])
        monkeypatch.setattr(f"mdc_flower.{module}.time", clock)
    assert ask_to_train(context(), deadline_s=51.0, evaluate=True).has_content()
    named = reason(ask_to_train(context(), deadline_s=50.0, evaluate=True))
    assert named.startswith("DeadlineError: round 1: the deadline passed")


@pytest.mark.parametrize(
    ("where", "named"),
    [
        (lambda: context({}), "ConfigError: node config: a site needs a name"),
        (lambda: context(lr_mx=1.0), "ConfigError: run config, lr-mx: no such key"),
        (lambda: context(batch_size=0), "ConfigError: run config, batch-size"),
        (lambda: context(dataset="digit"), "ConfigError: dataset: no such data set"),
        (lambda: context(dataset="client_lab:broken"), "OSError: the scanner is off"),
        (lambda: context({"site": "north", "device": "abacus"}), "ConfigError: device: "),
    ],
    ids=["no-name", "key", "value", "dataset", "user-code", "device"],
)
def test_what_a_site_cannot_do_becomes_an_error_reply_with_code_type_and_message(
    where: Any, named: str
) -> None:
    reply = ask_to_train(where())
    assert named in reason(reply)
    cause = Cause.CONFIG if named.startswith("ConfigError") else Cause.SITE_FAILED
    assert cause_of(reply.error.code) is cause


def test_an_error_that_nobody_foresaw_is_answered_with_the_place_in_the_code() -> None:
    where = context(dataset="client_lab:broken")
    message, *trace = reason(ask_to_train(where)).splitlines()
    assert message == "OSError: the scanner is off"
    assert len(trace) == TRACE_LINES
    assert "client_lab.py" in trace[-2]
    assert "in broken" in trace[-2]
    assert trace[-1].strip() == 'raise OSError("the scanner is off")'


# What a real site does not tell


@pytest.mark.parametrize("kind", ["broken", "patient", "deep"])
def test_of_an_error_that_nobody_foresaw_a_real_site_tells_type_and_place_alone(
    kind: str, site_log: Path
) -> None:
    where = context({"site": "north", "data": f"client_lab:{kind}"})
    message, *places = reason(ask_to_train(where)).splitlines()
    name, text = {
        "broken": ("OSError", "the scanner is off"),
        "patient": ("ValueError", "Jane Doe, born 1970"),
        "deep": ("KeyError", "Jane Doe"),
    }[kind]
    assert message == f"{name}, see the site's log"
    assert text not in "".join(places)
    assert len(places) == TRACE_CALLS
    assert all(re.fullmatch(r"[\w.]+:\d+ in \S+", place) for place in places), places
    assert places[-1].startswith("client_lab.py:")
    # The site's own people see all of it.
    (failed,) = events(site_log)
    assert (failed["event"], failed["message"]) == ("failed", "train")
    assert name in failed["error"]
    assert text in failed["error"]


def test_an_error_that_another_caused_tells_nothing_of_that_either() -> None:
    where = context({"site": "north", "data": "client_lab:caused"})
    assert "Jane" not in reason(ask_to_train(where))


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Return a folder of images, with blanks in its names, one file of which is no image."""
    root = tmp_path / "Jane Doe" / "scans 2026"
    for split in ("train", "test"):
        for name in ("healthy", "ill"):
            (root / split / name).mkdir(parents=True)
            image = Image.new("RGB", (4, 4), "red" if split == "test" else "blue")
            image.save(root / split / name / "John Roe 1.png")
    (root / "train" / "ill" / "Max Muster 2.png").write_bytes(b"no image")
    return root


def test_an_image_that_cannot_be_read_is_told_without_its_path(
    patients: Path, site_log: Path
) -> None:
    where = context({"site": "north", "data": f"image-folder:{patients}"})
    reply = ask_to_train(where)
    named = reason(reply)
    assert named.startswith("DataError: the image cannot be decoded")
    assert cause_of(reply.error.code) is Cause.DATA
    for private in (str(patients), "Doe", "scans", "2026", "Max", "Muster", "ill"):
        assert private not in named, private
    (failed,) = events(site_log)
    assert str(patients / "train" / "ill" / "Max Muster 2.png") in failed["error"]


def test_names_of_classes_which_may_be_of_patients_stay_at_the_site(patients: Path) -> None:
    (patients / "train" / "ill" / "Max Muster 2.png").unlink()
    (patients / "test" / "Max Muster").mkdir()
    where = context({"site": "north", "data": f"image-folder:{patients}"})
    named = reason(ask_to_train(where))
    assert named == (
        "DataError: the test folder has a class that the training folder does not have. "
        "The site's log has the details"
    )


def test_a_data_contract_that_is_not_kept_is_told_by_its_point_alone(
    tmp_path: Path, site_log: Path
) -> None:
    contract = Contract(name="scans", type="uint8", shape=(1, 8, 8), classes=("healthy", "ill"))
    file = tmp_path / "contract.toml"
    file.write_text(tomli_w.dumps({"contract": contract.model_dump(by_alias=True)}))
    node = {"site": "north", "data": "client_lab:halves", "contract": str(file)}
    assert reason(ask_to_train(context(node))) == (
        "DataError: data contract 'scans': the data set has a class that is not in the contract. "
        "The site's log has the details"
    )
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in events(site_log)[0]["error"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("no such key", where="node config, dta", hint="Did you mean 'data'?"), None),
        (ConfigError("odd", got="/data/Jane Doe", expected="a/b", hint="See /tmp/x"), "odd"),
        (ConfigError("no file /data/Jane Doe.png here", where="/data"), "no file <path>"),
        (ConfigError("no file C:\\Jane Doe\\1.png", where="D:\\x", got="E:\\"), "no file C:<path>"),
        (ConfigError("odd", got=["/data/Jane"]), "odd"),
        (ConfigError("odd", got=Path("/data/Jane")), "odd"),
        (ConfigError("odd", got=0), "odd (got 0)"),
        (
            DataError("odd label", got=17, expected="0 to 9"),
            "odd label. The site's log has the details",
        ),
        (PlanError("odd", where="round plan, x", got=1.5, expected="1"), None),
    ],
)
def test_what_is_raised_on_purpose_is_told_without_paths(error: MdcError, told: str | None) -> None:
    assert without_paths(error) == (str(error) if told is None else told)


@pytest.mark.parametrize(
    ("node", "private"),
    [
        ({"site": "north"}, True),
        ({}, True),
        ({"site": 7}, True),
        ({"site": "north", "partition-id": 0, "num-partitions": 2}, True),
        ({"partition-id": 0, "num-partitions": 2}, False),
    ],
)
def test_only_a_simulated_site_tells_all(node: dict[str, Any], private: bool) -> None:
    where = context(node, dataset="/odd/Jane")
    named = reason(ask_to_train(where))
    assert ("Jane" in named) is not private


# What a site tells its own people


def test_a_round_is_a_line_at_its_start_one_an_epoch_and_one_at_its_end(site_log: Path) -> None:
    # A context of its own: whether progress is told is settled when a site's process starts.
    where = context({"site": "with-a-log"})
    ask(MessageType.QUERY, RecordDict(), where)
    orders = plan(local_epochs=2, lr_max=0.1, lr_min=0.1)
    reply = ask_to_train(where, orders, evaluate=True)
    ask(MessageType.EVALUATE, evaluate_content(arrays_to_record(initial())), where)
    found = events(site_log)
    kinds = ["hello", "training", "progress", "progress", "trained", "evaluated"]
    assert [event["event"] for event in found] == kinds
    hello, training, first, second, done, evaluated = found
    assert hello["site"] == "with-a-log"
    # 100 examples, of which 10 are held out.
    assert (training["round"], training["local_epochs"], training["examples"]) == (1, 2, 90)
    # 90 examples in batches of 32: three steps an epoch.
    assert [(event["epoch"], event["step"], event["num_steps"]) for event in (first, second)] == [
        (1, 3, 6),
        (2, 6, 6),
    ]
    assert done["train-loss"] == metrics_of(reply)["train-loss"]
    assert evaluated["num-validation-examples"] == 10


def test_a_plan_that_is_not_understood_forges_no_line_of_the_sites_log(site_log: Path) -> None:
    content = train_message()
    content.config_records[PLAN]["event"] = "trained"
    named = reason(ask(MessageType.TRAIN, content, context({"site": "north"})))
    assert named.startswith("PlanError: round plan, event")
    assert [event["event"] for event in events(site_log)] == ["failed"]


def test_a_log_that_cannot_be_written_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(ask_to_train(context({"site": "north"})))
    monkeypatch.setenv(SITE_LOG, str(tmp_path / "absent" / "log"))
    assert trained(ask_to_train(context({"site": "north"}))) == expected


def test_an_error_raised_on_purpose_is_answered_with_its_one_line() -> None:
    assert len(reason(ask_to_train(context(dataset="digit"))).splitlines()) == 1


def test_a_hello_without_a_name_becomes_an_error_reply() -> None:
    reply = ask(MessageType.QUERY, RecordDict(), context({}))
    assert reason(reply).startswith("ConfigError: node config: a site needs a name")


def test_an_unknown_field_of_the_plan_is_refused_by_name() -> None:
    content = train_message()
    content.config_records[PLAN]["momentum"] = 0.9
    named = reason(ask(MessageType.TRAIN, content, context()))
    assert named.startswith("PlanError: round plan, momentum")
    assert "same version of mdc-flower" in named


def test_a_plan_that_was_changed_on_its_way_is_refused() -> None:
    content = train_message()
    content.config_records[PLAN]["lr_max"] = 0.2
    assert "plan_id" in reason(ask(MessageType.TRAIN, content, context()))


@pytest.mark.parametrize("missing", [ARRAYS, PLAN, ORDERS])
def test_a_message_without_a_record_is_answered_with_its_name(missing: str) -> None:
    content = train_message()
    del content[missing]
    assert missing in reason(ask(MessageType.TRAIN, content, context()))


def renamed(old: str, new: str) -> dict[str, NDArray[Any]]:
    return {new if name == old else name: array for name, array in initial().items()}


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        (lambda: renamed("1.weight", "1.gewicht"), "got '1.gewicht', expected 1.weight"),
        (lambda: dict(list(initial().items())[:3]), "got '3 arrays', expected 4"),
        (lambda: initial() | {"4.weight": np.zeros(1)}, "got '5 arrays', expected 4"),
        (lambda: dict(reversed(initial().items())), "got '3.bias', expected 1.weight"),
        (lambda: initial(model="small-cnn"), "got '0.weight', expected 1.weight"),
    ],
    ids=["renamed", "fewer", "more", "order", "other-model"],
)
@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_a_model_of_other_names_is_refused_with_the_first_misfit(
    kind: str, arrays: Any, named: str
) -> None:
    content = RecordDict({ARRAYS: arrays_to_record(arrays()), PLAN: PLANNED.to_config_record()})
    assert reason(ask(kind, content, context())).startswith("ModelError: arrays: the coordinator's")
    assert named in reason(ask(kind, content, context()))


def test_a_model_of_another_shape_is_refused_by_the_arrays_name() -> None:
    arrays = initial() | {"3.bias": np.zeros(11, np.float32)}
    assert "array '3.bias'" in reason(ask_to_train(context(), arrays=arrays))


def test_a_site_that_failed_once_trains_the_next_time() -> None:
    where = context()
    expected = trained(ask_to_train(where))
    assert ask_to_train(where, arrays={}).has_error()
    assert trained(ask_to_train(where)) == expected


def test_a_site_stops_at_the_deadline_and_trains_the_next_time() -> None:
    where = context()
    expected = trained(ask_to_train(where))
    named = reason(ask_to_train(where, deadline_s=1e-9))
    assert named.startswith("DeadlineError: round 1: the deadline passed")
    assert "got '0 of 2 steps" in named
    assert trained(ask_to_train(where)) == expected


def test_the_deadline_changes_no_bit() -> None:
    where = context()
    first = trained(ask_to_train(where, deadline_s=60.0))
    assert trained(ask_to_train(where, deadline_s=7200.0)) == first


def test_the_message_is_left_as_it_was() -> None:
    content = train_message()
    before = {name: array.tobytes() for name, array in initial().items()}
    ask(MessageType.TRAIN, content, context())
    after = record_to_arrays(content.array_records[ARRAYS])
    assert {name: array.tobytes() for name, array in after.items()} == before
    assert content.config_records[PLAN] == ConfigRecord(dict(PLANNED.to_config_record()))


@pytest.mark.parametrize(
    ("real", "threads", "expected"),
    [(False, None, 3), (True, None, usable_cores()), (True, 0, usable_cores()), (True, 4, 4)],
)
def test_a_simulated_site_computes_on_the_runs_threads_and_a_real_one_on_its_own(
    tmp_path: Path, real: bool, threads: int | None, expected: int
) -> None:
    (tmp_path / "client_threads.py").write_text(
        "import torch\n"
        "seen = set()\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        seen.add(torch.get_num_threads())\n"
        "        return super().forward(x.flatten(1))\n"
        "def net(shape, classes):\n"
        "    return Net(64, classes)\n"
    )
    keys: dict[str, Any] = {"model": "client_threads:net", "threads_per_site": 3}
    arrays = initial(**keys)
    node = {"site": "north", **({} if threads is None else {"threads": threads})}
    where = context(node if real else None, **keys)
    import client_threads  # type: ignore[import-not-found]

    client_threads.seen.clear()
    # The model is built, and tried on two examples, before: only training itself counts here.
    ask_to_train(where, arrays=arrays)
    client_threads.seen.clear()
    ask_to_train(where, arrays=arrays)
    ask(MessageType.EVALUATE, evaluate_content(arrays_to_record(arrays)), where)
    assert client_threads.seen == {expected}
    assert card_of(where).threads == expected
