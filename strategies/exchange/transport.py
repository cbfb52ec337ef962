"""Send messages and yield the replies one by one, as they arrive, until a deadline."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from copy import copy
from datetime import UTC, datetime
from logging import WARNING
from typing import NamedTuple, Protocol

from flwr.app import Error, Message, MessageType, Metadata, RecordDict
from flwr.serverapp import Grid

from strategies.common.log import log
from strategies.exchange.causes import Cause, FlowerError, cause_of

NO_REPLY = int(FlowerError.NODE_UNAVAILABLE)
"""Error code for a missing reply: Flower's code for an unavailable node."""


def is_no_reply(reply: Message) -> bool:
    """Return whether an error reports that the node did not answer, in time or at all.

    The SuperLink reports this for a message that it cannot deliver any more: the message has
    expired, or its node is offline.
    """
    return reply.has_error() and cause_of(reply.error.code) is Cause.NO_REPLY


class RequestSource(Protocol):
    """Decides which further messages to send while replies arrive."""

    def due(self) -> Iterable[Message]:
        """Return the messages to send now; called after every check for replies."""
        ...

    def settled(self) -> Collection[int]:
        """Return the nodes whose replies are no longer needed."""
        ...

    def expects_more(self) -> bool:
        """Return whether more messages may become due even if no reply is awaited."""
        ...

    def limit_s(self) -> float:
        """Return when to stop waiting, in seconds since the start, as currently known."""
        ...


class Late(NamedTuple):
    """A message whose reply arrived after the exchange stopped waiting for it.

    Attributes
    ----------
    dst_node_id, group_id
        Metadata of the message.
    seconds : float
        Seconds from sending the message to finding the reply.
    """

    dst_node_id: int
    group_id: str
    seconds: float


class _Sent(NamedTuple):
    message: Message
    at: float


class Exchange:
    """Sends messages and collects replies; one instance serves a whole run.

    It remembers messages whose replies are overdue; `late` reports replies that arrive later.

    Parameters
    ----------
    grid
        Flower's message transport.
    meanwhile
        Called after every check for replies.
    """

    def __init__(self, grid: Grid, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._grid = grid
        self._meanwhile = meanwhile
        self._overdue: dict[str, tuple[Metadata, float]] = {}

    def replies(
        self, messages: Iterable[Message], deadline_s: float, source: RequestSource | None = None
    ) -> Iterator[Message]:
        """Yield one reply for each message: the node's reply as it arrives, or an error.

        A message to a node that `RequestSource.settled` returns gets no reply. Neither does an
        overdue hello, because its answer still counts when it comes. The source of every
        reply is the node that was asked, even if the SuperLink answers in its place. Replies are
        fetched one at a time and not kept, and neither is what was sent, so only one model is in
        memory, however many sites there are.

        Parameters
        ----------
        messages
            Messages to send.
        deadline_s
            How long to wait for replies, in seconds from now. The messages' own time to live should
            match it; otherwise a slow site continues work that no longer counts.
        source
            Provides further messages until the deadline, and decides whether to stop earlier.
        """
        started = time.monotonic()
        waiting: dict[str, _Sent] = {}
        yield from self._send(messages, waiting)
        del messages  # their content is a model
        while True:
            in_vain_s = 0.0
            for message_id in list(waiting):
                asked_at = time.monotonic()
                replies = list(self._grid.pull_messages([message_id]))
                if not replies:
                    in_vain_s += time.monotonic() - asked_at
                while replies:
                    reply = replies.pop()
                    asked = waiting.pop(reply.metadata.reply_to_message_id, None)
                    if asked is not None:
                        yield from_node(reply, asked.message)
                    del reply
            # Whatever arrives in the meantime is fetched before the wait ends.
            elapsed_s = time.monotonic() - started
            self._meanwhile()
            limit_s = deadline_s
            if elapsed_s >= limit_s:
                break
            if source is not None:
                yield from self._send(source.due(), waiting)
                self._give_up(waiting, source.settled())
                limit_s = min(deadline_s, source.limit_s())
            if elapsed_s >= limit_s:
                break
            if not (waiting or (source is not None and source.expects_more())):
                break
            time.sleep(min(_pause_s(elapsed_s, in_vain_s), limit_s - elapsed_s))
        overdue = [sent.message for sent in waiting.values()]
        self._give_up(waiting, [message.metadata.dst_node_id for message in overdue])
        why = f"no reply within {round(limit_s, 1):g} s"
        for message in overdue:
            if message.metadata.message_type == MessageType.QUERY:
                continue
            yield Message(Error(NO_REPLY, why), reply_to=message)

    def late(self) -> Iterator[Late]:
        """Yield each overdue message whose reply has arrived by now, once."""
        for message_id, (asked, sent_at) in list(self._overdue.items()):
            for reply in self._grid.pull_messages([message_id]):
                # For an expired message the reply is from the SuperLink, not from the node.
                self._overdue.pop(message_id, None)
                if reply.metadata.src_node_id == asked.dst_node_id and not is_no_reply(reply):
                    seconds = time.monotonic() - sent_at
                    yield Late(asked.dst_node_id, asked.group_id, seconds)

    def _give_up(self, waiting: dict[str, _Sent], nodes: Collection[int]) -> None:
        """Stop waiting for these nodes."""
        for message_id, (message, sent_at) in list(waiting.items()):
            if message.metadata.dst_node_id in nodes:
                del waiting[message_id]
                if message.metadata.message_type != MessageType.QUERY:  # its answer still counts
                    self._overdue[message_id] = message.metadata, sent_at

    def _send(self, messages: Iterable[Message], waiting: dict[str, _Sent]) -> Iterator[Message]:
        for message in messages:
            # Push one message at a time. The returned ids of a batch omit the messages that the
            # grid did not accept, so ids could not be matched to messages.
            ids = self._push(message)
            if ids and ids[0]:
                waiting[ids[0]] = _Sent(_without_content(message), time.monotonic())
            else:
                yield Message(Error(NO_REPLY, "the message could not be sent"), reply_to=message)

    def _push(self, message: Message) -> list[str]:
        try:
            return list(self._grid.push_messages([message]))
        except Exception as error:
            # The SuperLink answers "500" to an expired message.
            if not _has_expired(message.metadata):
                raise
            log(WARNING, "a message expired before it could be sent: %s", error)
            return []


def exchange(grid: Grid, messages: Iterable[Message], deadline_s: float) -> Iterator[Message]:
    """Yield one reply for each message; see `Exchange.replies`."""
    return Exchange(grid).replies(messages, deadline_s)


def from_node(reply: Message, asked: Message) -> Message:
    """Return a reply as one of the node that was asked, even if the SuperLink sent it."""
    if reply.metadata.src_node_id == asked.metadata.dst_node_id:
        return reply
    foreign = Error(NO_REPLY, f"the reply came from node {reply.metadata.src_node_id}")
    return Message(reply.error if reply.has_error() else foreign, reply_to=asked)


def _without_content(message: Message) -> Message:
    """Return a message with the same metadata but without the content, which is a model."""
    light = copy(message)
    light.content = RecordDict()
    return light


def _has_expired(metadata: Metadata) -> bool:
    return metadata.created_at + metadata.ttl <= datetime.now(tz=UTC).timestamp()


def _pause_s(elapsed_s: float, in_vain_s: float) -> float:
    """Return a pause that is short relative to the time waited, and long to that spent asking.

    Each question costs the SuperLink some milliseconds of a core, which sites on the same machine
    lack.
    """
    return min(1.0, max(0.02, 0.02 * elapsed_s, 20 * in_vain_s))
