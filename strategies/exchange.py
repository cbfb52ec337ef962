"""Send messages and take the replies one by one, as they arrive, until a deadline."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol

from flwr.app import Error, Message, MessageType, Metadata
from flwr.serverapp import Grid

NO_REPLY = 5
"""Error code of a reply that never came: Flower's code for a node that is unavailable."""


class Asker(Protocol):
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
        self._overdue: dict[str, Metadata] = {}

    def replies(
        self, messages: Iterable[Message], deadline_s: float, asker: Asker | None = None
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
        asker
            Asked for more messages to send, until the deadline.
        """
        started = time.monotonic()
        waiting: dict[str, Message] = {}
        yield from self._send(messages, waiting)
        while True:
            for message_id in list(waiting):
                for reply in self._grid.pull_messages([message_id]):
                    asked = waiting.pop(reply.metadata.reply_to_message_id, None)
                    if asked is not None:
                        yield _from_node(reply, asked)
                    del reply
            self._meanwhile()
            elapsed_s = time.monotonic() - started
            if elapsed_s >= deadline_s:
                break
            if asker is not None:
                yield from self._send(asker.due(), waiting)
                self._give_up(waiting, asker.settled())
            if not (waiting or (asker is not None and asker.hopes())):
                break
            time.sleep(min(_pause_s(elapsed_s), deadline_s - elapsed_s))
        overdue = list(waiting.values())
        self._give_up(waiting, [message.metadata.dst_node_id for message in overdue])
        for message in overdue:
            yield Message(Error(NO_REPLY, f"no reply within {deadline_s:g} s"), reply_to=message)

    def late(self) -> Iterator[Metadata]:
        """Yield what is known of the messages given up whose reply has come since; each once."""
        for message_id, asked in list(self._overdue.items()):
            for reply in self._grid.pull_messages([message_id]):
                # Where a message's time to live is over the SuperLink answers, not the node.
                self._overdue.pop(message_id, None)
                nobody = reply.has_error() and reply.error.code == NO_REPLY
                if reply.metadata.src_node_id == asked.dst_node_id and not nobody:
                    yield asked

    def _give_up(self, waiting: dict[str, Message], nodes: Collection[int]) -> None:
        """Wait no more for what was sent to these nodes; keep no content: it is a whole model."""
        for message_id, message in list(waiting.items()):
            if message.metadata.dst_node_id in nodes:
                del waiting[message_id]
                if message.metadata.message_type != MessageType.QUERY:  # that is asked again
                    self._overdue[message_id] = message.metadata

    def _send(self, messages: Iterable[Message], waiting: dict[str, Message]) -> Iterator[Message]:
        for message in messages:
            # Pushed one at a time: the ids of a batch come back without the messages that the
            # grid could not take, and no longer say whose is whose.
            ids = list(self._grid.push_messages([message]))
            if ids and ids[0]:
                waiting[ids[0]] = message
            else:
                yield Message(Error(NO_REPLY, "the message could not be sent"), reply_to=message)


def exchange(grid: Grid, messages: Iterable[Message], deadline_s: float) -> Iterator[Message]:
    """Yield one reply for each message; see `Exchange.replies`."""
    return Exchange(grid).replies(messages, deadline_s)


def _from_node(reply: Message, asked: Message) -> Message:
    if reply.metadata.src_node_id == asked.metadata.dst_node_id:
        return reply
    foreign = Error(NO_REPLY, f"the reply came from node {reply.metadata.src_node_id}")
    return Message(reply.error if reply.has_error() else foreign, reply_to=asked)


def _pause_s(elapsed_s: float) -> float:
    """Return a pause that is short beside what has been waited for already."""
    return min(1.0, max(0.02, 0.02 * elapsed_s))
