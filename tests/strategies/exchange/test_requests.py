"""Requests: every site is asked once; sites that failed or came back are asked again."""

from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from strategies.exchange.membership import HELLO_DEADLINE_S, Membership, Silence, refresh
from strategies.exchange.messages import DEADLINE, ORDERS, SiteCard, deadline_of
from strategies.exchange.requests import LATE_WINDOW_S, LOOKUP_INTERVAL_S, MAX_REQUESTS, Requests
from tests.strategies.fakes import NODE_IDS, Clock, FakeGrid, LinearSite, grid_of

A, B, C, D = NODE_IDS
WAIT_S = 30.0
DEADLINE_S = 70.0


def three() -> FakeGrid:
    return grid_of(LinearSite("a"), LinearSite("b"), LinearSite("c"))


def requests_of(grid: FakeGrid, *kept: str, known: Membership | None = None) -> Requests:
    def content(site: str, left_s: float) -> RecordDict:
        return RecordDict({ORDERS: ConfigRecord({DEADLINE: left_s})})

    membership = known or refresh(Membership(), grid)
    return Requests(grid, membership, 4, content, deadline_s=DEADLINE_S, wait_s=WAIT_S, kept=kept)


def asked(requests: Requests) -> Requests:
    """Return the requests after sending the first messages."""
    requests.first()
    return requests


def nodes_of(messages: list[Message]) -> list[int]:
    return [message.metadata.dst_node_id for message in messages]


def due(requests: Requests, grid: FakeGrid | None = None) -> list[int]:
    """Return the nodes that are asked to train; new nodes on the grid first answer a hello."""
    trained: list[int] = []
    while True:
        messages = list(requests.due())
        hellos = [m for m in messages if m.metadata.message_type == MessageType.QUERY]
        trained += nodes_of([m for m in messages if m not in hellos])
        if not hellos:
            return trained
        assert grid is not None, "nobody new is expected here"
        for hello in hellos:
            answer = grid.nodes[hello.metadata.dst_node_id](hello)
            if answer is not None:
                requests.introduce(answer)


def test_every_site_that_is_online_is_asked_first_in_site_order() -> None:
    grid = grid_of(LinearSite("c"), LinearSite("a"), LinearSite("b"))
    messages = requests_of(grid).first()
    assert nodes_of(messages) == [B, C, A]
    assert {message.metadata.message_type for message in messages} == {MessageType.TRAIN}
    assert {message.metadata.group_id for message in messages} == {"4"}
    # Longer than it is waited for, so that a late reply is seen as late.
    assert {message.metadata.ttl for message in messages} == {DEADLINE_S + LATE_WINDOW_S}
    assert {deadline_of(message.content) for message in messages} == {DEADLINE_S}


def test_a_site_whose_update_is_here_already_is_not_asked_at_all() -> None:
    requests = requests_of(three(), "a", "c")
    assert nodes_of(requests.first()) == [B]
    assert due(requests) == []


def test_nobody_is_asked_again_while_all_are_at_work(clock: Clock) -> None:
    requests = asked(requests_of(three()))
    clock.sleep(10 * LOOKUP_INTERVAL_S)
    assert due(requests) == []
    assert requests.times == {"a": 1, "b": 1, "c": 1}


def test_a_site_that_failed_is_asked_once_more_and_then_no_more() -> None:
    requests = asked(requests_of(three()))
    requests.reject("b")
    assert due(requests) == [B]
    assert due(requests) == []  # it is at work again
    requests.reject("b")
    assert due(requests) == []
    assert MAX_REQUESTS == 2
    assert requests.times == {"a": 1, "b": 2, "c": 1}
    assert requests.traffic.times == requests.times


def test_a_site_that_is_asked_again_is_told_the_rest_of_the_deadline_and_never_nothing(
    clock: Clock,
) -> None:
    requests = asked(requests_of(three()))
    clock.sleep(50.0)
    requests.reject("b")
    (again,) = requests.due()
    assert deadline_of(again.content) == DEADLINE_S - 50.0
    assert again.metadata.ttl == DEADLINE_S - 50.0 + LATE_WINDOW_S
    clock.sleep(DEADLINE_S)
    requests.reject("a")
    (at_the_end,) = requests.due()
    assert deadline_of(at_the_end.content) == 1.0  # for nothing is no deadline


def test_all_nodes_that_were_asked_under_a_name_whose_update_is_here_are_settled(
    clock: Clock,
) -> None:
    grid = three()
    requests = asked(requests_of(grid, "a"))
    assert requests.settled() == set()  # a was not asked
    requests.accept("c")
    assert requests.settled() == {C}
    grid.nodes[D] = LinearSite("b")
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests, grid) == [D]
    assert requests.settled() == {C}
    requests.accept("b")
    assert requests.settled() == {B, C, D}


def test_a_site_whose_second_reply_counts_is_done_with() -> None:
    requests = asked(requests_of(three()))
    requests.reject("b")
    requests.accept("b")
    assert due(requests) == []
    assert requests.accepted == {"b"}


def test_a_restarted_site_is_asked_at_the_next_look_though_its_old_node_never_failed(
    clock: Clock,
) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    grid.nodes[D] = LinearSite("b")  # the old node lingers
    clock.sleep(LOOKUP_INTERVAL_S - 1)
    assert due(requests) == []
    clock.sleep(1)
    assert due(requests, grid) == [D]
    assert due(requests) == []


def test_a_restarted_site_is_asked_at_once_where_its_old_node_failed() -> None:
    grid = three()
    requests = asked(requests_of(grid))
    grid.stop(B)
    grid.nodes[D] = LinearSite("b")
    requests.reject("b")
    assert due(requests, grid) == [D]


def test_a_site_that_comes_while_the_round_goes_on_is_asked(clock: Clock) -> None:
    grid = grid_of(LinearSite("a"))
    requests = asked(requests_of(grid))
    grid.nodes[B] = LinearSite("b")
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests, grid) == [B]
    assert requests.times == {"a": 1, "b": 1}


def test_a_node_that_comes_while_the_round_goes_on_is_asked_once_who_it_is(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    grid.nodes[D] = LinearSite("d")
    clock.sleep(LOOKUP_INTERVAL_S)
    (hello,) = requests.due()
    assert (hello.metadata.dst_node_id, hello.metadata.message_type) == (D, MessageType.QUERY)
    assert hello.metadata.ttl == HELLO_DEADLINE_S
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests) == []  # it takes its time
    requests.introduce(Message(SiteCard("d", 0, version="test").to_content(), reply_to=hello))
    assert due(requests) == [D]
    assert requests.times.total() == 4  # a hello carries no model


def test_a_node_that_refuses_is_not_asked_again(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    grid.nodes[D] = lambda message: Message(Error(2, "no key 'site'"), reply_to=message)
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests, grid) == []
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests) == []
    assert list(requests.membership.refused) == [D]


def test_a_stranger_is_waited_for_only_while_an_update_is(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid, "c"))
    grid.nodes[D] = lambda message: None
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests, grid) == []
    requests.accept("a")
    assert requests.settled() == {A}
    grid.stop(B)
    requests.reject("b")
    assert due(requests) == []
    assert requests.settled() == {A}  # it may be b, which is hoped for
    clock.sleep(WAIT_S)
    assert requests.settled() == {A, D}


def test_who_is_online_is_looked_up_no_more_often_than_needed(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    looks = grid.num_looks
    for _ in range(100):
        clock.sleep(LOOKUP_INTERVAL_S / 10)
        assert due(requests) == []
    assert grid.num_looks - looks <= 10


def test_a_node_that_did_not_say_who_it_is_is_not_asked_so_at_every_look(clock: Clock) -> None:
    grid = three()
    grid.nodes[D] = lambda message: None
    requests = asked(requests_of(grid))
    requests.membership = replace(
        requests.membership, silent={D: Silence(2, clock.now + 11 * LOOKUP_INTERVAL_S)}
    )
    before = clock.now
    for _ in range(10):
        clock.sleep(LOOKUP_INTERVAL_S)
        assert due(requests) == []
    assert clock.now - before == pytest.approx(10 * LOOKUP_INTERVAL_S)
    assert len(grid.sent_of_type(MessageType.QUERY)) == 4


def test_only_a_site_that_failed_and_is_offline_is_hoped_for_and_not_for_ever(
    clock: Clock,
) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    assert not requests.expects_more()  # nobody failed
    requests.reject("a")
    assert not requests.expects_more()  # it is online, and asked again anyway
    grid.stop(B)
    requests.reject("b")
    assert due(requests) == [A]
    assert requests.expects_more()
    clock.sleep(WAIT_S - 0.1)
    assert requests.expects_more()
    clock.sleep(0.1)
    assert not requests.expects_more()


def test_a_site_that_was_asked_as_often_as_may_be_is_not_hoped_for() -> None:
    grid = three()
    requests = asked(requests_of(grid))
    requests.reject("b")
    assert due(requests) == [B]
    grid.stop(B)
    requests.reject("b")
    assert due(requests) == []
    assert not requests.expects_more()
    assert requests.gone() == {"b"}


def test_a_site_that_came_back_is_not_hoped_for_nor_gone(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    grid.stop(B)
    requests.reject("b")
    assert due(requests) == []
    assert requests.gone() == {"b"}
    grid.nodes[D] = LinearSite("b")
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests, grid) == [D]
    assert not requests.expects_more()
    assert requests.gone() == frozenset()


def test_a_site_that_is_at_work_again_or_done_has_not_failed_though_it_goes(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    requests.reject("a")
    requests.reject("b")
    assert due(requests) == [A, B]
    requests.reject("b")  # late news of the first asking
    requests.accept("b")
    grid.stop(A)
    grid.stop(B)
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests) == []
    assert requests.gone() == frozenset()


def test_a_sites_seconds_are_counted_from_its_last_asking(clock: Clock) -> None:
    requests = asked(requests_of(three(), "c"))
    clock.sleep(20.0)
    assert requests.seconds_of("a") == pytest.approx(20.0)
    requests.reject("b")
    assert due(requests) == [B]
    clock.sleep(10.0)
    assert [requests.seconds_of(site) for site in "abc"] == pytest.approx([30.0, 10.0, 0.0])


def test_a_reply_is_known_by_the_node_that_was_asked_also_when_that_is_gone(clock: Clock) -> None:
    grid = three()
    requests = requests_of(grid)
    message = requests.first()[1]
    grid.stop(B)
    grid.nodes[D] = LinearSite("b")
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests, grid) == [D]
    assert requests.site_of(Message(RecordDict(), reply_to=message)) == "b"
    assert [requests.name_of(node) for node in (B, D, 5)] == ["b", "b", "node 5"]


def test_a_reply_of_someone_who_was_not_asked_has_no_site() -> None:
    requests = requests_of(three(), "c")
    requests.first()
    stranger = Message(RecordDict(), dst_node_id=C, message_type=MessageType.TRAIN)
    assert requests.site_of(Message(RecordDict(), reply_to=stranger)) is None


def test_a_newcomer_whose_hello_expired_is_asked_again_in_the_round(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    grid.nodes[D] = LinearSite("d")
    clock.sleep(LOOKUP_INTERVAL_S)
    (hello,) = requests.due()
    clock.sleep(HELLO_DEADLINE_S)
    expired = Error(ErrorCode.MESSAGE_UNAVAILABLE, "it has expired")
    requests.introduce(Message(expired, reply_to=hello))
    assert requests.membership.refused == {}
    assert due(requests, grid) == [D]


def test_the_answer_of_a_newcomer_counts_in_the_next_attempt(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    grid.nodes[D], grid.hello_delays[D] = LinearSite("d"), 10.0
    clock.sleep(LOOKUP_INTERVAL_S)
    grid.push_messages(list(requests.due()))
    following = asked(requests_of(grid, known=requests.membership))
    clock.sleep(10.0)
    assert due(following, grid) == [D]
    assert following.name_of(D) == "d"


def test_a_newcomer_that_goes_offline_before_it_answers_is_forgotten(clock: Clock) -> None:
    grid = three()
    requests = asked(requests_of(grid))
    grid.nodes[D] = LinearSite("d")
    clock.sleep(LOOKUP_INTERVAL_S)
    (hello,) = requests.due()
    del grid.nodes[D]
    clock.sleep(LOOKUP_INTERVAL_S)
    assert due(requests, grid) == []
    unavailable = Error(ErrorCode.NODE_UNAVAILABLE, "node unavailable")
    requests.introduce(Message(unavailable, reply_to=hello))
    assert D not in requests.membership.silent
