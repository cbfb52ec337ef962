"""Send messages and take the replies one by one, as they arrive, until a deadline."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Error, Message
from flwr.serverapp import Grid

NO_REPLY = 5
"""Error code of a reply that never came: Flower's code for a node that is unavailable."""


def exchange(grid: Grid, messages: Iterable[Message], deadline_s: float) -> Iterator[Message]:
    """Yield exactly one reply for each message: the node's own, as it arrives, or an error.

    Every reply's source is the node that was asked, also when the SuperLink answers in a
    node's place, so that the caller can always say whose reply it is.

    Parameters
    ----------
    grid
        Flower's message transport.
    messages
        Messages to send, one at most for each node.
    deadline_s
        Seconds from now after which no reply is waited for. The messages' own time to live
        should match it, or a slow site goes on with work that no longer counts.
    """
    started = time.monotonic()
    waiting: dict[str, Message] = {}
    for message in messages:
        # Pushed one at a time: the ids of a batch come back without the messages that the
        # grid could not take, and no longer say whose is whose.
        ids = list(grid.push_messages([message]))
        if ids and ids[0]:
            waiting[ids[0]] = message
        else:
            yield Message(Error(NO_REPLY, "the message could not be sent"), reply_to=message)
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            asked = waiting.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None:
                yield _from_node(reply, asked)
        elapsed_s = time.monotonic() - started
        if not waiting or elapsed_s >= deadline_s:
            break
        time.sleep(min(_pause_s(elapsed_s), deadline_s - elapsed_s))
    for message in waiting.values():
        yield Message(Error(NO_REPLY, f"no reply within {deadline_s:g} s"), reply_to=message)


def _from_node(reply: Message, asked: Message) -> Message:
    if reply.metadata.src_node_id == asked.metadata.dst_node_id or not reply.has_error():
        return reply
    return Message(reply.error, reply_to=asked)


def _pause_s(elapsed_s: float) -> float:
    """Return a pause that is short beside what has been waited for already."""
    return min(1.0, max(0.02, 0.02 * elapsed_s))
