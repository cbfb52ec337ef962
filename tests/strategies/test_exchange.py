"""The exchange: one reply for each message, and always a word on whose it is."""

from collections.abc import Callable
from typing import Any

from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from strategies.exchange import NO_REPLY, exchange
from tests.strategies.fakes import NODE_IDS, FakeGrid, from_superlink

A, B, C, _ = NODE_IDS
DEADLINE_S = 0.05


def messages(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), node, MessageType.TRAIN, ttl=60.0) for node in nodes]


def answers(text: str) -> Callable[[Message], Message]:
    """Return a node that answers with this text."""

    def node(message: Message) -> Message:
        return Message(RecordDict({"said": ConfigRecord({"text": text})}), reply_to=message)

    return node


def silent(message: Message) -> None:
    return None


def fails(message: Message) -> Message:
    return Message(Error(2, "the site raised"), reply_to=message)


def gone(message: Message) -> Message:
    return from_superlink(message, "node unavailable")


def said(reply: Message) -> object:
    return reply.content.config_records["said"]["text"]


def source(reply: Message) -> int:
    return reply.metadata.src_node_id


def grid(**options: Any) -> FakeGrid:
    return FakeGrid({A: answers("a"), B: answers("b"), C: answers("c")}, **options)


def test_each_message_gets_its_own_nodes_reply() -> None:
    replies = list(exchange(grid(), messages(A, B, C), DEADLINE_S))
    assert {source(reply): said(reply) for reply in replies} == {A: "a", B: "b", C: "c"}
    assert len(replies) == 3


def test_replies_are_yielded_in_the_order_in_which_they_arrive() -> None:
    replies = exchange(grid(arrival=[C, A, B]), messages(A, B, C), DEADLINE_S)
    assert [said(reply) for reply in replies] == ["c", "a", "b"]


def test_a_reply_is_yielded_while_others_are_still_waited_for() -> None:
    late = grid(delays={A: 1, C: 1})
    replies = exchange(late, messages(A, B, C), 60.0)
    assert said(next(replies)) == "b"
    assert late.num_pulls == 1
    assert {said(reply) for reply in replies} == {"a", "c"}


def test_a_node_that_does_not_answer_gets_an_error_when_the_time_is_over() -> None:
    nodes = FakeGrid({A: answers("a"), B: silent, C: answers("c")})
    *others, last = exchange(nodes, messages(A, B, C), DEADLINE_S)
    assert [said(reply) for reply in others] == ["a", "c"]
    assert source(last) == B
    assert (last.error.code, last.error.reason) == (NO_REPLY, "no reply within 0.05 s")


def test_every_silent_node_is_accounted_for() -> None:
    nodes = FakeGrid({A: silent, B: silent, C: silent})
    replies = list(exchange(nodes, messages(A, B, C), DEADLINE_S))
    assert [source(reply) for reply in replies] == [A, B, C]
    assert all(reply.has_error() for reply in replies)


def test_a_site_that_failed_is_yielded_with_its_own_error() -> None:
    (reply,) = exchange(FakeGrid({A: fails}), messages(A), DEADLINE_S)
    assert source(reply) == A
    assert (reply.error.code, reply.error.reason) == (2, "the site raised")


def test_an_error_of_the_superlink_is_given_to_the_node_it_stands_for() -> None:
    nodes = FakeGrid({A: answers("a"), B: gone})
    replies = {source(reply): reply for reply in exchange(nodes, messages(A, B), DEADLINE_S)}
    assert set(replies) == {A, B}
    assert (replies[B].error.code, replies[B].error.reason) == (5, "node unavailable")


def test_a_message_that_cannot_be_sent_gets_an_error_and_the_others_their_own_replies() -> None:
    # Were all pushed at once, the ids would come back one short, and each reply after the gap
    # would be taken for another node's.
    replies = list(exchange(grid(unsendable={A}), messages(A, B, C), DEADLINE_S))
    by_node = {source(reply): reply for reply in replies}
    assert len(replies) == 3
    assert by_node[A].error.code == NO_REPLY
    assert by_node[A].error.reason == "the message could not be sent"
    assert (said(by_node[B]), said(by_node[C])) == ("b", "c")


def test_a_reply_that_arrives_twice_is_yielded_once() -> None:
    replies = exchange(grid(copies=2), messages(A, B), DEADLINE_S)
    assert sorted(str(said(reply)) for reply in replies) == ["a", "b"]


def test_a_reply_to_some_other_message_is_not_taken_for_an_answer() -> None:
    (stray,) = messages(A)
    stray.metadata.__dict__["_message_id"] = "of-another-run"

    def node(message: Message) -> Message:
        return answers("stray")(stray)

    (reply,) = exchange(FakeGrid({A: node}), messages(A), DEADLINE_S)
    assert reply.error.code == NO_REPLY


def test_without_messages_nothing_is_waited_for() -> None:
    empty = grid()
    assert list(exchange(empty, [], 60.0)) == []
    assert empty.num_pulls == 0
