"""Send messages and take the replies one by one, as they arrive, until a deadline."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from logging import WARNING
from typing import NamedTuple, Protocol

from flwr.app import Error, Message, MessageType, Metadata
from flwr.serverapp import Grid

from strategies.common.log import log
from strategies.exchange.causes import Cause, FlowerError, cause_of

NO_REPLY = int(FlowerError.NODE_UNAVAILABLE)
"""Error code of a reply that never came: Flower's code for a node that is unavailable."""


def is_no_reply(reply: Message) -> bool:
    """Return whether an error says that the node has not answered, in time or at all.

    The SuperLink says so of a message that it can deliver no more: its time to live is over, or its
    node has gone.
    """
    return reply.has_error() and cause_of(reply.error.code) is Cause.NO_REPLY


class RequestSource(Protocol):
    """Decides, while replies come in, whom else to ask."""

    def due(self) -> Iterable[Message]:
        """Return the messages to send now; called after every look for replies."""
        ...

    def settled(self) -> Collection[int]:
        """Return the nodes whose replies need not be waited for any more."""
        ...

    def hopes(self) -> bool:
        """Return whether more may become due though nothing is on its way."""
        ...

    def limit_s(self) -> float:
        """Return after how many seconds no reply is waited for, as far as is known now."""
        ...


class Late(NamedTuple):
    """A message whose reply came after it had been given up.

    Attributes
    ----------
    dst_node_id, group_id
        Of the message.
    seconds : float
        From its sending until the reply was seen.
    """

    dst_node_id: int
    group_id: str
    seconds: float


class _Sent(NamedTuple):
    message: Message
    at: float


class Exchange:
    """Messages on their way; one for a whole run.

    A message whose reply came too late is not forgotten at once: `late` says so, when it comes.

    Parameters
    ----------
    grid
        Flower's message transport.
    meanwhile
        Called after every look for replies.
    """

    def __init__(self, grid: Grid, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._grid = grid
        self._meanwhile = meanwhile
        self._overdue: dict[str, tuple[Metadata, float]] = {}

    def replies(
        self, messages: Iterable[Message], deadline_s: float, source: RequestSource | None = None
    ) -> Iterator[Message]:
        """Yield exactly one reply for each message: the node's own, as it arrives, or an error.

        Every reply's source is the node that was asked, also when the SuperLink answers in a
        node's place, so that the caller can always say whose reply it is. One reply at a time
        is fetched, and none is kept: however many sites there are, one model is in memory.

        Parameters
        ----------
        messages
            Messages to send.
        deadline_s
            Seconds from now after which no reply is waited for. The messages' own time to
            live should match it, or a slow site goes on with work that no longer counts.
        source
            Asked for more messages to send, until the deadline, and whether to stop before it.
        """
        started = time.monotonic()
        waiting: dict[str, _Sent] = {}
        yield from self._send(messages, waiting)
        while True:
            for message_id in list(waiting):
                for reply in self._grid.pull_messages([message_id]):
                    asked = waiting.pop(reply.metadata.reply_to_message_id, None)
                    if asked is not None:
                        yield _from_node(reply, asked.message)
                    del reply
            self._meanwhile()
            elapsed_s = time.monotonic() - started
            limit_s = deadline_s
            if elapsed_s >= limit_s:
                break
            if source is not None:
                yield from self._send(source.due(), waiting)
                self._give_up(waiting, source.settled())
                limit_s = min(deadline_s, source.limit_s())
            if elapsed_s >= limit_s:
                break
            if not (waiting or (source is not None and source.hopes())):
                break
            time.sleep(min(_pause_s(elapsed_s), limit_s - elapsed_s))
        overdue = [sent.message for sent in waiting.values()]
        self._give_up(waiting, [message.metadata.dst_node_id for message in overdue])
        why = f"no reply within {round(limit_s, 1):g} s"
        for message in overdue:
            yield Message(Error(NO_REPLY, why), reply_to=message)

    def late(self) -> Iterator[Late]:
        """Yield the messages given up whose reply has come since; each once."""
        for message_id, (asked, sent_at) in list(self._overdue.items()):
            for reply in self._grid.pull_messages([message_id]):
                # Where a message's time to live is over the SuperLink answers, not the node.
                self._overdue.pop(message_id, None)
                if reply.metadata.src_node_id == asked.dst_node_id and not is_no_reply(reply):
                    seconds = time.monotonic() - sent_at
                    yield Late(asked.dst_node_id, asked.group_id, seconds)

    def _give_up(self, waiting: dict[str, _Sent], nodes: Collection[int]) -> None:
        """Wait no more for what was sent to these nodes; keep no content: it is a whole model."""
        for message_id, (message, sent_at) in list(waiting.items()):
            if message.metadata.dst_node_id in nodes:
                del waiting[message_id]
                if message.metadata.message_type != MessageType.QUERY:  # that is asked again
                    self._overdue[message_id] = message.metadata, sent_at

    def _send(self, messages: Iterable[Message], waiting: dict[str, _Sent]) -> Iterator[Message]:
        for message in messages:
            # Pushed one at a time: the ids of a batch come back without the messages that the
            # grid could not take, and no longer say whose is whose.
            ids = self._push(message)
            if ids and ids[0]:
                waiting[ids[0]] = _Sent(message, time.monotonic())
            else:
                yield Message(Error(NO_REPLY, "the message could not be sent"), reply_to=message)

    def _push(self, message: Message) -> list[str]:
        try:
            return list(self._grid.push_messages([message]))
        except Exception as error:
            # The SuperLink answers "500" to a message whose time to live is over.
            if not _has_expired(message.metadata):
                raise
            log(WARNING, "a message expired before it could be sent: %s", error)
            return []


def exchange(grid: Grid, messages: Iterable[Message], deadline_s: float) -> Iterator[Message]:
    """Yield one reply for each message; see `Exchange.replies`."""
    return Exchange(grid).replies(messages, deadline_s)


def _from_node(reply: Message, asked: Message) -> Message:
    if reply.metadata.src_node_id == asked.metadata.dst_node_id:
        return reply
    foreign = Error(NO_REPLY, f"the reply came from node {reply.metadata.src_node_id}")
    return Message(reply.error if reply.has_error() else foreign, reply_to=asked)


def _has_expired(told: Metadata) -> bool:
    return told.created_at + told.ttl <= datetime.now(tz=UTC).timestamp()


def _pause_s(elapsed_s: float) -> float:
    """Return a pause that is short beside what has been waited for already."""
    return min(1.0, max(0.02, 0.02 * elapsed_s))
