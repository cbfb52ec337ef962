"""The in-process engine: a grid that delivers one message at a time, and an identity given back."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from mdc_flower.config import read_run_config
from mdc_flower.engines.in_process import InProcessGrid, run_in_process
from strategies.exchange.messages import train_content
from strategies.exchange.transport import NO_REPLY
from tests.mdc_flower.examples import plan

NODES = [8_243_971_190_237_113_041, 1_557_302_844_917_720_986, 6_020_113_377_615_904_462]


@pytest.fixture
def asked() -> list[int]:
    """Return the list of nodes in the order in which they were asked."""
    return []


@pytest.fixture
def client(asked: list[int]) -> ClientApp:
    """Return an app that answers with its node's id and counts its messages in its state."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        count = int(context.state.config_records.get("seen", {"count": 0})["count"]) + 1  # type: ignore[arg-type]
        context.state["seen"] = ConfigRecord({"count": count})
        answer = ConfigRecord({"node": str(context.node_id), "count": count})
        return Message(RecordDict({"answer": answer}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        raise FileNotFoundError("the disk is gone")

    return app


def context(node: int) -> Context:
    return Context(run_id=22, node_id=node, node_config={}, state=RecordDict(), run_config={})


@pytest.fixture
def grid(identity: None, client: ClientApp) -> InProcessGrid:
    return InProcessGrid(client, {node: context(node) for node in NODES})


def message(node: int, kind: str = MessageType.QUERY) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type=kind)


def train_message(node: int, deadline_s: float = 60.0) -> Message:
    content = train_content(ArrayRecord(), plan(), deadline_s)
    return Message(content, dst_node_id=node, message_type=MessageType.TRAIN)


def answers(replies: Any) -> list[tuple[int, int]]:
    """Return who sent each reply, and the count in it."""
    return [
        (reply.metadata.src_node_id, reply.content.config_records["answer"]["count"])
        for reply in replies
    ]


def test_all_sites_are_online(grid: InProcessGrid) -> None:
    assert list(grid.get_node_ids()) == NODES


def test_it_is_a_grid_of_flowers(grid: InProcessGrid) -> None:
    assert isinstance(grid, Grid)


def test_nothing_is_delivered_before_it_is_asked_for(grid: InProcessGrid, asked: list[int]) -> None:
    ids = list(grid.push_messages([message(node) for node in NODES]))
    assert len(set(ids)) == 3
    assert asked == []


def test_one_reply_is_delivered_at_a_time_in_the_order_of_the_ids(
    grid: InProcessGrid, asked: list[int]
) -> None:
    ids = list(grid.push_messages([message(node) for node in NODES]))
    for count in (1, 2, 3):
        (reply,) = grid.pull_messages(ids)
        assert asked == NODES[:count]
        assert reply.metadata.src_node_id == NODES[count - 1]
        assert reply.metadata.reply_to_message_id == ids[count - 1]
    assert list(grid.pull_messages(ids)) == []
    assert asked == NODES


def test_a_reply_can_be_asked_for_out_of_turn(grid: InProcessGrid, asked: list[int]) -> None:
    ids = list(grid.push_messages([message(node) for node in NODES]))
    (reply,) = grid.pull_messages([ids[2]])
    assert reply.metadata.src_node_id == NODES[2]
    assert asked == [NODES[2]]


def test_a_reply_is_given_once(grid: InProcessGrid, asked: list[int]) -> None:
    ids = list(grid.push_messages([message(NODES[0])]))
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []
    assert asked == [NODES[0]]


@pytest.mark.parametrize("ids", [[], ["no-such-id"], ["", "a", "b"]])
def test_unknown_ids_give_nothing(grid: InProcessGrid, asked: list[int], ids: list[str]) -> None:
    grid.push_messages([message(NODES[0])])
    assert list(grid.pull_messages(ids)) == []
    assert asked == []


def test_an_unknown_id_does_not_hide_a_known_one(grid: InProcessGrid) -> None:
    ids = list(grid.push_messages([message(NODES[1])]))
    assert answers(grid.pull_messages(["no-such-id", *ids])) == [(NODES[1], 1)]


def test_a_sites_state_lasts_from_message_to_message(grid: InProcessGrid) -> None:
    replies = grid.send_and_receive([message(node) for node in (*NODES, NODES[0])])
    assert answers(replies) == [*((node, 1) for node in NODES), (NODES[0], 2)]


def test_send_and_receive_leaves_other_messages_waiting(grid: InProcessGrid) -> None:
    earlier = list(grid.push_messages([message(NODES[0])]))
    assert answers(grid.send_and_receive([message(NODES[1])])) == [(NODES[1], 1)]
    assert answers(grid.pull_messages(earlier)) == [(NODES[0], 1)]


def test_a_client_app_that_raises_becomes_an_error_reply(grid: InProcessGrid) -> None:
    broken = train_message(NODES[0])
    reply, well = grid.send_and_receive([broken, message(NODES[1])])
    assert reply.has_error()
    assert reply.error.code == 2
    reason = reply.error.reason
    assert reason is not None
    assert "the disk is gone" in reason
    assert reply.metadata.src_node_id == NODES[0]
    assert not well.has_error()


def test_a_site_does_not_begin_what_nobody_waits_for_any_more(
    grid: InProcessGrid, asked: list[int]
) -> None:
    overdue, in_time = grid.send_and_receive([train_message(NODES[0], 1e-9), message(NODES[1])])
    assert overdue.has_error()
    assert overdue.error.code == NO_REPLY
    assert overdue.metadata.src_node_id == NODES[0]
    assert not in_time.has_error()
    assert asked == [NODES[1]]


def test_a_train_message_without_a_deadline_becomes_an_error_reply(
    grid: InProcessGrid, asked: list[int]
) -> None:
    (reply,) = grid.send_and_receive([message(NODES[0], MessageType.TRAIN)])
    assert reply.has_error()
    assert "the deadline is missing" in str(reply.error.reason)
    assert asked == []


def test_a_kind_of_message_that_the_app_does_not_know_becomes_an_error_reply(
    grid: InProcessGrid,
) -> None:
    (reply,) = grid.send_and_receive([message(NODES[0], MessageType.EVALUATE)])
    assert reply.has_error()


def test_the_grid_makes_messages_and_keeps_its_run(grid: InProcessGrid) -> None:
    one = grid.create_message(RecordDict(), MessageType.QUERY, NODES[0], "7", ttl=12.0)
    assert one.metadata.dst_node_id == NODES[0]
    assert (one.metadata.group_id, one.metadata.ttl) == ("7", 12.0)
    assert grid.run.run_id == 22
    grid.set_run(Run.create_empty(run_id=23))
    assert grid.run.run_id == 23


# A whole run


def config(tmp_path: Path, **keys: Any) -> Any:
    return read_run_config({"output-dir": str(tmp_path / "run"), "model": "mlp", **keys})


def server_that(work: Callable[[Grid, Context], None]) -> ServerApp:
    app = ServerApp()
    app.main()(work)
    return app


@pytest.fixture
def contexts(tmp_path: Path) -> list[tuple[int, Context]]:
    """Return what each of three sites is given: the node it is asked as, and its context."""
    seen: list[tuple[int, Context]] = []
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        seen.append((message.metadata.dst_node_id, context))
        return Message(RecordDict(), reply_to=message)

    def main(grid: Grid, context: Context) -> None:
        assert context.run_config == config(tmp_path, seed=7).to_flower()
        assert context.run_id == TaskIdentity.run_id == grid.run.run_id
        sent = [message(node) for node in grid.get_node_ids()]
        assert not any(reply.has_error() for reply in grid.send_and_receive(sent))

    run_in_process(config(tmp_path, seed=7), 3, server_that(main), app)
    return seen


def test_each_site_is_given_its_partition_and_the_runs_config(
    tmp_path: Path, contexts: list[tuple[int, Context]]
) -> None:
    expected = [{"partition-id": site, "num-partitions": 3} for site in range(3)]
    assert [dict(context.node_config) for _, context in contexts] == expected
    for _, context in contexts:
        assert context.run_config == config(tmp_path, seed=7).to_flower()
    assert len({context.run_id for _, context in contexts}) == 1


def test_each_site_is_given_its_own_node_id(contexts: list[tuple[int, Context]]) -> None:
    assert [context.node_id for _, context in contexts] == [node for node, _ in contexts]
    assert len({node for node, _ in contexts}) == 3


def test_node_ids_are_drawn_anew(tmp_path: Path, client: ClientApp) -> None:
    seen: list[list[int]] = []

    def main(grid: Grid, context: Context) -> None:
        seen.append(list(grid.get_node_ids()))

    for _ in range(2):
        run_in_process(config(tmp_path), 3, server_that(main), client)
    assert len({node for nodes in seen for node in nodes}) == 6


def identity_now() -> list[int | None]:
    """Return Flower's identity of this process; None for what is not set."""
    values: list[int | None] = []
    for name in ("task_id", "run_id", "node_id"):
        try:
            values.append(getattr(TaskIdentity, name))
        except RuntimeError:
            values.append(None)
    return values


@pytest.fixture(params=["set", "not-set"])
def some_identity(request: pytest.FixtureRequest) -> list[int | None]:
    """Be somebody, or nobody, before a run."""
    if request.param == "set":
        request.getfixturevalue("identity")
    return identity_now()


def test_the_identity_is_given_back(
    tmp_path: Path, client: ClientApp, some_identity: list[int | None]
) -> None:
    during: list[list[int | None]] = []

    def main(grid: Grid, context: Context) -> None:
        during.append(identity_now())

    run_in_process(config(tmp_path), 1, server_that(main), client)
    assert identity_now() == some_identity
    assert None not in during[0]
    assert during[0] != some_identity


def test_what_the_server_app_raises_is_raised_and_all_is_given_back(
    tmp_path: Path,
    client: ClientApp,
    some_identity: list[int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main(grid: Grid, context: Context) -> None:
        raise ArithmeticError("no more")

    monkeypatch.setattr(logging.getLogger("flwr"), "level", logging.INFO)
    with pytest.raises(ArithmeticError, match="no more"):
        run_in_process(config(tmp_path), 1, server_that(main), client)
    assert identity_now() == some_identity
    assert logging.getLogger("flwr").level == logging.INFO


def test_an_error_of_a_site_does_not_end_the_run(tmp_path: Path, client: ClientApp) -> None:
    replies: list[Message] = []

    def main(grid: Grid, context: Context) -> None:
        nodes = list(grid.get_node_ids())
        replies.extend(grid.send_and_receive([train_message(nodes[0])]))
        replies.extend(grid.send_and_receive([message(nodes[1])]))

    run_in_process(config(tmp_path), 2, server_that(main), client)
    assert [reply.has_error() for reply in replies] == [True, False]
    assert isinstance(replies[0].error, Error)
