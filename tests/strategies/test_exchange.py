"""The exchange: one reply for each message, and always a word on whose it is."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from strategies import exchange as exchange_module
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


def test_the_code_of_a_missing_reply_is_flowers_own() -> None:
    assert NO_REPLY == ErrorCode.NODE_UNAVAILABLE


class Clock:
    """Stands in for the module `time`: it moves when someone sleeps, and only then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class TimedGrid(FakeGrid):
    """Hands no reply out before some time."""

    def __init__(self, clock: Clock, ready_after_s: float) -> None:
        super().__init__({A: answers("a")})
        self.clock = clock
        self.ready_at = clock.now + ready_after_s

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(message_ids) if self.clock.now >= self.ready_at else []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(exchange_module, "time", clock)
    return clock


def test_it_looks_often_at_first_and_at_least_once_a_second_later(clock: Clock) -> None:
    (reply,) = exchange(TimedGrid(clock, ready_after_s=200.0), messages(A), 300.0)
    assert said(reply) == "a"
    # A fiftieth of the time waited so far, but no less than 20 ms and no more than 1 s.
    elapsed_s = 0.0
    for pause in clock.pauses:
        assert pause == pytest.approx(min(1.0, max(0.02, elapsed_s / 50)))
        elapsed_s += pause
    assert 200.0 <= elapsed_s <= 201.0


def test_once_every_reply_is_there_it_does_not_pause(clock: Clock) -> None:
    assert len(list(exchange(grid(), messages(A, B), 300.0))) == 2
    assert clock.pauses == []


def test_the_deadline_is_kept_on_the_clock(clock: Clock) -> None:
    (reply,) = exchange(FakeGrid({A: silent}), messages(A), 10.0)
    assert reply.error.reason == "no reply within 10 s"
    assert sum(clock.pauses) == pytest.approx(10.0)


def test_a_reply_that_came_just_before_the_deadline_counts(clock: Clock) -> None:
    (reply,) = exchange(TimedGrid(clock, ready_after_s=9.999), messages(A), 10.0)
    assert reply.has_content()
