"""The ClientApp: Flower messages in, Flower messages out, and an error reply for every failure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from numpy.typing import NDArray

import mdc_flower
from mdc_flower.client_app import TRACE_LINES, app
from mdc_flower.config import read_run_config
from mdc_flower.site_client import model_arrays
from mdc_flower.task import load_task
from strategies.averaging import Update
from strategies.messages import (
    ARRAYS,
    PLAN,
    TIMING,
    SiteCard,
    arrays_to_record,
    evaluate_content,
    record_to_arrays,
    train_content,
)
from strategies.reply_gate import Rejection, judge_evaluate, judge_train, specs_of
from strategies.round_plan import RoundPlan
from tests.mdc_flower.examples import plan

pytestmark = pytest.mark.usefixtures("identity")

NODE = 8_243_971_190_237_113_041
ORDERS = plan(lr_max=0.1, lr_min=0.05, shape="cosine")
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
"""


@pytest.fixture(autouse=True)
def client_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a site's own modules where Python finds them."""
    (tmp_path / "client_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)


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
    orders: RoundPlan = ORDERS,
    arrays: dict[str, NDArray[Any]] | None = None,
    deadline_s: float = 600.0,
) -> Message:
    model = initial() if arrays is None else arrays
    return ask(MessageType.TRAIN, train_content(arrays_to_record(model), orders, deadline_s), where)


def train_message() -> RecordDict:
    return train_content(arrays_to_record(initial()), ORDERS, 600.0)


def trained(reply: Message) -> dict[str, bytes]:
    arrays = record_to_arrays(reply.content.array_records[ARRAYS])
    return {name: array.tobytes() for name, array in arrays.items()}


def reason(reply: Message) -> str:
    assert reply.has_error()
    assert reply.error.code == 2  # Flower's code for a ClientApp that raised
    assert reply.error.reason is not None
    assert "Traceback" not in reply.error.reason
    return reply.error.reason


@pytest.mark.parametrize(
    ("node", "card"),
    [
        ({"partition-id": 3, "num-partitions": 5}, ("site-3", 5)),
        ({"site": "north"}, ("north", 0)),
    ],
)
def test_a_hello_is_answered_with_the_sites_card(
    node: dict[str, Any], card: tuple[str, int]
) -> None:
    reply = ask(MessageType.QUERY, RecordDict(), context(node))
    assert SiteCard.from_content(reply.content) == SiteCard(*card, mdc_flower.__version__)


def test_a_hello_needs_no_data() -> None:
    reply = ask(MessageType.QUERY, RecordDict(), context(dataset="no-such-data"))
    assert reply.has_content()


def test_a_train_message_is_answered_with_an_update_that_counts() -> None:
    arrays = initial()
    reply = ask_to_train(context())
    verdict = judge_train(reply, "site-0", ORDERS.plan_id, specs_of(arrays))
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
        "reply": {"plan-id": ORDERS.plan_id}
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


def test_a_real_site_looks_for_data_in_its_own_root(tmp_path: Path) -> None:
    node = {"site": "north", "data": "cifar10", "data-root": str(tmp_path / "mine")}
    reply = ask_to_train(context(node, data_root=str(tmp_path / "the-runs")))
    assert str(tmp_path / "mine") in reason(reply)
    assert str(tmp_path / "the-runs") not in reason(reply)


def test_an_evaluate_message_is_answered_with_metrics_of_the_sites_validation_examples() -> None:
    reply = ask(MessageType.EVALUATE, evaluate_content(arrays_to_record(initial())), context())
    verdict = judge_evaluate(reply, "site-0")
    assert not isinstance(verdict, Rejection), verdict
    assert verdict["num-examples"] == 5
    assert 0 <= verdict["accuracy"] <= 1
    assert verdict["accuracy"] * 5 == pytest.approx(round(verdict["accuracy"] * 5))
    assert verdict["loss"] > 0


@pytest.mark.parametrize(
    ("where", "named"),
    [
        (lambda: context({}), "ConfigError: node config: a site needs a name"),
        (lambda: context(lr_mx=1.0), "ConfigError: run config, lr-mx: no such key"),
        (lambda: context(batch_size=0), "ConfigError: run config, batch-size"),
        (lambda: context(dataset="digit"), "ConfigError: dataset: no such data set"),
        (
            lambda: context({"site": "north", "data": "client_lab:broken"}),
            "OSError: the scanner is off",
        ),
        (lambda: context({"site": "north", "device": "abacus"}), "ConfigError: device: "),
    ],
    ids=["no-name", "key", "value", "dataset", "user-code", "device"],
)
def test_what_a_site_cannot_do_becomes_an_error_reply_with_type_and_message(
    where: Any, named: str
) -> None:
    assert named in reason(ask_to_train(where()))


def test_an_error_that_nobody_foresaw_is_answered_with_the_place_in_the_code() -> None:
    where = context({"site": "north", "data": "client_lab:broken"})
    message, *trace = reason(ask_to_train(where)).splitlines()
    assert message == "OSError: the scanner is off"
    assert len(trace) == TRACE_LINES
    assert "client_lab.py" in trace[-2]
    assert "in broken" in trace[-2]
    assert trace[-1].strip() == 'raise OSError("the scanner is off")'


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


@pytest.mark.parametrize("missing", [ARRAYS, PLAN, TIMING])
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
    content = RecordDict({ARRAYS: arrays_to_record(arrays()), PLAN: ORDERS.to_config_record()})
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
    assert named.startswith("DeadlineError: round 1: the deadline has come")
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
    assert content.config_records[PLAN] == ConfigRecord(dict(ORDERS.to_config_record()))


def test_training_and_evaluation_are_on_the_configs_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    import client_threads  # type: ignore[import-not-found]

    client_threads.seen.clear()
    # The model is built, and tried on two examples, before: only training itself counts here.
    ask_to_train(context(**keys), arrays=arrays)
    client_threads.seen.clear()
    ask_to_train(context(**keys), arrays=arrays)
    ask(MessageType.EVALUATE, evaluate_content(arrays_to_record(arrays)), context(**keys))
    assert client_threads.seen == {3}
