"""The exchange: one reply for each message, and always with the right source."""

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.server.utils.validator import validate_message

from strategies.exchange.transport import NO_REPLY, Exchange, exchange
from tests.strategies.fakes import NODE_IDS, Clock, FakeGrid, from_superlink

A, B, C, _ = NODE_IDS
DEADLINE_S = 10.0


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


def test_a_reply_is_yielded_while_others_are_still_waited_for(clock: Clock) -> None:
    replies = exchange(grid(delays={A: 1.0, C: 2.0}), messages(A, B, C), DEADLINE_S)
    assert said(next(replies)) == "b"
    assert clock.pauses == []
    assert [said(reply) for reply in replies] == ["a", "c"]


def test_replies_are_pulled_one_by_one_and_none_is_kept(clock: Clock) -> None:
    # A reply holds a whole model: one at a time may be in memory, however many there are.
    pulled: list[list[str]] = []

    class Watched(FakeGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            pulled.append(list(message_ids))
            return super().pull_messages(pulled[-1])

    nodes = Watched({A: answers("a"), B: answers("b"), C: answers("c")})
    seen: list[weakref.ref[Message]] = []
    for reply in exchange(nodes, messages(A, B, C), DEADLINE_S):
        assert [reference for reference in seen if reference() is not None] == []
        seen.append(weakref.ref(reply))
        del reply
    assert pulled == [["message-0"], ["message-1"], ["message-2"]]


def test_a_node_that_does_not_answer_gets_an_error_when_the_time_is_over() -> None:
    nodes = FakeGrid({A: answers("a"), B: silent, C: answers("c")})
    *others, last = exchange(nodes, messages(A, B, C), DEADLINE_S)
    assert [said(reply) for reply in others] == ["a", "c"]
    assert source(last) == B
    assert (last.error.code, last.error.reason) == (NO_REPLY, "no reply within 10 s")


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


class TimedGrid(FakeGrid):
    """Returns no reply before a given time."""

    def __init__(self, clock: Clock, ready_after_s: float) -> None:
        super().__init__({A: answers("a")})
        self.ready_at = clock.now + ready_after_s

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(message_ids) if self.clock.now >= self.ready_at else []


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


class Repeater:
    """A `RequestSource` that sends messages at given times and stops waiting for nodes."""

    def __init__(
        self,
        clock: Clock,
        more: dict[float, Message],
        expects_until_s: float = 0,
        settled_at: Mapping[int, float] | None = None,
        limits_s: Mapping[float, float] | None = None,
    ) -> None:
        self.clock = clock
        self.more = more
        self.expects_until_s = expects_until_s
        self.settled_at = settled_at or {}
        self.limits_s = {0.0: math.inf, **(limits_s or {})}

    def due(self) -> Iterable[Message]:
        return [self.more.pop(at) for at in list(self.more) if at <= self.clock.now]

    def settled(self) -> Collection[int]:
        return {node for node, at in self.settled_at.items() if at <= self.clock.now}

    def expects_more(self) -> bool:
        return self.clock.now < self.expects_until_s

    def limit_s(self) -> float:
        return [limit for since, limit in self.limits_s.items() if since <= self.clock.now][-1]


def exchange_with(nodes: FakeGrid, first: list[Message], asker: Repeater) -> list[Message]:
    return list(Exchange(nodes).replies(first, DEADLINE_S, asker))


def test_what_an_asker_finds_due_meanwhile_is_sent_and_answered_too(clock: Clock) -> None:
    first, second = messages(A, B)
    slow = grid(delays={A: 5.0})
    replies = exchange_with(slow, [first], Repeater(clock, {2.0: second}))
    assert [said(reply) for reply in replies] == ["b", "a"]


def test_while_an_asker_hopes_the_exchange_goes_on_and_ends_when_it_hopes_no_more(
    clock: Clock,
) -> None:
    (second,) = messages(B)
    replies = exchange_with(
        grid(), messages(A), Repeater(clock, {4.0: second}, expects_until_s=5.0)
    )
    assert [said(reply) for reply in replies] == ["a", "b"]
    assert clock.now == pytest.approx(5.0, abs=0.2)


def test_no_hope_outlasts_the_deadline(clock: Clock) -> None:
    assert len(exchange_with(grid(), messages(A), Repeater(clock, {}, expects_until_s=99.0))) == 1
    assert clock.now == pytest.approx(DEADLINE_S)


def test_what_falls_due_with_the_deadline_is_not_sent_any_more(clock: Clock) -> None:
    (second,) = messages(B)
    nodes = grid()
    asker = Repeater(clock, {DEADLINE_S: second}, expects_until_s=99.0)
    assert [said(reply) for reply in exchange_with(nodes, messages(A), asker)] == ["a"]
    assert len(nodes.sent) == 1


def test_what_was_sent_to_a_node_that_is_settled_is_not_waited_for_and_gets_no_error(
    clock: Clock,
) -> None:
    talk = Exchange(grid(delays={B: 8.0, C: 9.0}))
    asker = Repeater(clock, {}, settled_at={A: 0.0, B: 3.0, C: 3.0})
    replies = list(talk.replies(messages(A, B, C), DEADLINE_S, asker))
    assert [said(reply) for reply in replies] == ["a"]
    assert clock.now == pytest.approx(3.0, abs=0.1)
    clock.sleep(5.5)
    assert [metadata.dst_node_id for metadata in talk.late()] == [B]


def test_others_are_waited_for_while_a_node_is_settled(clock: Clock) -> None:
    asker = Repeater(clock, {}, settled_at={B: 0.0})
    replies = exchange_with(grid(delays={A: 4.0, B: 2.0}), messages(A, B), asker)
    assert [said(reply) for reply in replies] == ["a"]


def test_an_asker_ends_the_wait_before_the_deadline_as_soon_as_it_says_so(clock: Clock) -> None:
    slow = grid(delays={A: 2.0, B: 8.0})
    asker = Repeater(clock, {}, limits_s={2.0: 5.0})
    said_a, overdue = exchange_with(slow, messages(A, B), asker)
    assert said(said_a) == "a"
    assert (source(overdue), overdue.error.reason) == (B, "no reply within 5 s")
    assert clock.now == pytest.approx(5.0)


def test_an_asker_cannot_put_off_the_deadline(clock: Clock) -> None:
    asker = Repeater(clock, {}, limits_s={0.0: 99.0})
    (overdue,) = exchange_with(FakeGrid({A: silent}), messages(A), asker)
    assert overdue.error.reason == "no reply within 10 s"
    assert clock.now == pytest.approx(DEADLINE_S)


def test_what_is_due_when_the_wait_ends_is_still_sent_and_may_prolong_it(clock: Clock) -> None:
    (second,) = messages(B)
    asker = Repeater(clock, {5.0: second}, limits_s={0.0: 5.0, 5.0: 9.0})
    *replies, overdue = exchange_with(
        FakeGrid({A: silent, B: answers("b")}, delays={B: 2.0}), messages(A), asker
    )
    assert [said(reply) for reply in replies] == ["b"]
    assert source(overdue) == A


def test_a_reply_that_came_too_late_is_told_of_once(clock: Clock) -> None:
    talk = Exchange(grid(delays={B: 15.0}))
    asked = messages(A, B)
    assert [reply.has_error() for reply in talk.replies(asked, DEADLINE_S)] == [False, True]
    assert list(talk.late()) == []
    clock.sleep(6.0)
    ((node, _, seconds),) = talk.late()
    assert node == B
    assert seconds == pytest.approx(16.0)
    assert list(talk.late()) == []


def test_a_message_that_the_superlink_gave_up_is_no_late_reply_and_is_forgotten(
    clock: Clock,
) -> None:
    def expires(message: Message) -> Message:
        return Message(Error(NO_REPLY, "its time to live is over"), reply_to=message)

    nodes = FakeGrid({A: answers("a"), B: expires}, delays={A: 99.0, B: 15.0})
    talk = Exchange(nodes)
    list(talk.replies(messages(A, B), DEADLINE_S))
    nodes.stop(A)
    clock.sleep(6.0)
    assert list(talk.late()) == []
    pulls = nodes.num_pulls
    assert list(talk.late()) == []
    assert nodes.num_pulls == pulls


class StrictGrid(FakeGrid):
    """Rejects an expired message with an HTTP error, as the SuperLink does."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        (message,) = messages
        if errors := validate_ttl(message):
            raise OSError(f"Server error '500 Internal Server Error': {errors}")
        return super().push_messages([message])


def validate_ttl(message: Message) -> list[str]:
    """Return the result of Flower's own check of a message's time to live."""
    return [error for error in validate_message(message, is_reply_message=False) if "TTL" in error]


def test_a_message_that_expired_before_it_was_sent_has_no_reply_and_ends_nothing() -> None:
    expired, alive = messages(A, B)
    expired.metadata.ttl = 1e-6
    nodes = StrictGrid({A: answers("a"), B: answers("b")})
    assert validate_ttl(expired) == ["Message TTL has expired"]
    first, second = exchange(nodes, [expired, alive], DEADLINE_S)
    assert (source(first), first.error.code) == (A, NO_REPLY)
    assert said(second) == "b"


def test_any_other_failure_of_the_grid_is_raised() -> None:
    class Broken(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            raise OSError("the SuperLink is gone")

    with pytest.raises(OSError, match="the SuperLink is gone"):
        list(exchange(Broken({A: answers("a")}), messages(A), DEADLINE_S))


class SlowGrid(FakeGrid):
    """A grid whose answer to each question takes 10 ms."""

    asked_s = 0.0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.clock.sleep(0.01)
        self.asked_s += 0.01
        return super().pull_messages(message_ids)


def test_questions_take_little_of_the_superlinks_time(clock: Clock) -> None:
    nodes = {A: silent, B: silent, C: silent}
    patient = SlowGrid(nodes)
    list(exchange(patient, messages(A, B, C), 60.0))
    assert 0 < patient.asked_s <= 0.06 * clock.now
    assert max(clock.pauses) <= 1.0
