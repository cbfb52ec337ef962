"""Tracks one attempt at a round: which sites were asked, who answered, who to ask again."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from strategies.exchange.deadline import Pacing
from strategies.exchange.membership import (
    Membership,
    hellos,
    introduced,
    late_introductions,
    without_offline,
)
from strategies.exchange.traffic import Traffic

MAX_REQUESTS = 2
"""Largest number of requests to a site in one attempt at a round."""

LOOKUP_INTERVAL_S = 5.0
"""Seconds between two checks for sites that come back during a round."""

LATE_WINDOW_S = 60.0
"""Seconds that a message stays valid after its deadline, so that late replies are recognized."""


class Requests:
    """One attempt at a round; the `RequestSource` of its exchange.

    A site that failed gets one more request. So does a site that was restarted and comes back as a
    new node, whatever happened to its old node. After the quorum is met, the slowest reply so far
    determines how long to wait for the other sites.

    Parameters
    ----------
    grid : Grid
        Reports which nodes are online.
    membership : Membership
        Sites that are online at the start; updated during the attempt.
    round_number : int
        Round number in every message.
    content : callable
        Takes a site's name and the seconds left to answer; returns the content of its message.
    deadline_s : float
        How long to wait for replies, in seconds from now.
    wait_s : float
        How long to wait for a site that failed and went offline, in seconds.
    kept : iterable of str
        Sites whose updates are already stored.
    kind : str
        Flower's type of the messages.
    traffic : Traffic or None
        Counts the messages of all attempts at the round. None for a new counter.
    pacing : Pacing or None
        The quorum, and the usual reply time of each site. None to wait until the deadline.
    again : bool
        Whether to ask sites that failed, or that come online during the round.
    """

    def __init__(
        self,
        grid: Grid,
        membership: Membership,
        round_number: int,
        content: Callable[[str, float], RecordDict],
        deadline_s: float,
        wait_s: float,
        kept: Iterable[str] = (),
        kind: str = MessageType.TRAIN,
        traffic: Traffic | None = None,
        pacing: Pacing | None = None,
        again: bool = True,
    ) -> None:
        self.membership = membership
        self.accepted = set(kept)
        self.times: Counter[str] = Counter()
        self.traffic = traffic if traffic is not None else Traffic()
        self.deadline_s = deadline_s
        self._grid = grid
        self._round = round_number
        self._content = content
        self._kind = kind
        self._wait_s = wait_s
        self._pacing = pacing
        self._again = again
        self._reply_seconds = {
            site: pacing.usual_s(site) if pacing else 0.0 for site in self.accepted
        }
        self._site_of: dict[int, str] = {}
        self._node_of: dict[str, int] = {}
        self._nodes_of: dict[str, set[int]] = {}
        self._greeted: set[int] = set()
        self._sent_at: dict[str, float] = {}
        self._failed_at: dict[str, float] = {}
        self._excused: Counter[str] = Counter()
        self._started_at = self._looked_up_at = time.monotonic()

    def first(self) -> list[Message]:
        """Return a message for each online site whose update is not stored yet."""
        nodes = self.membership.nodes
        return [self._ask(site, nodes[site]) for site in nodes if site not in self.accepted]

    def due(self) -> Iterator[Message]:
        """Yield messages for online sites that failed, and for sites that came back."""
        if not self._again:
            return
        if time.monotonic() - self._looked_up_at >= LOOKUP_INTERVAL_S:
            yield from self._look_up_sites()
        for site, node in self.membership.nodes.items():
            if site in self.accepted or not self._may_be_asked(site):
                continue
            if site in self._failed_at or self._node_of.get(site) != node:
                yield self._ask(site, node)

    def introduce(self, reply: Message) -> None:
        """Process the hello reply of a node that came online during the round."""
        self._greeted.discard(reply.metadata.src_node_id)
        self.membership = introduced(self.membership, reply)

    def settled(self) -> set[int]:
        """Return all nodes that were asked for sites whose updates are stored.

        Once no more updates are awaited, nodes that have not answered a hello are included.
        """
        nodes = {node for site in self.accepted for node in self._nodes_of.get(site, ())}
        if self._pending_sites() or self.expects_more():
            return nodes
        return nodes | self._greeted

    def expects_more(self) -> bool:
        """Return whether a failed site is offline but may still come back in time."""
        return bool(self._return_deadlines())

    def limit_s(self) -> float:
        """Return when to stop waiting, in seconds since the start, as currently known."""
        if self._pacing is None:
            return math.inf
        pending = self._pending_sites()
        patience_s = self._pacing.patience_s(self._reply_seconds, pending)
        ends = [self._sent_at[site] + patience_s for site in pending]
        return max([*ends, *self._return_deadlines()], default=math.inf) - self._started_at

    def accept(self, site: str) -> None:
        """Record that a site's update is accepted."""
        self.accepted.add(site)
        self._failed_at.pop(site, None)
        self._reply_seconds[site] = self.seconds_of(site)

    def seconds_of(self, site: str) -> float:
        """Return the seconds since the last request to a site; 0 if there was none."""
        return time.monotonic() - self._sent_at[site] if site in self._sent_at else 0.0

    def reject(self, site: str, is_failure: bool = True) -> None:
        """Record that a site's reply is rejected; the next `due` checks which sites are online.

        If it is not a failure of the site, the site may get another request for it.
        """
        self._excused[site] += not is_failure
        self._failed_at[site] = time.monotonic()
        self._looked_up_at = float("-inf")

    def site_of(self, reply: Message) -> str | None:
        """Return the name of the site that sent a reply; None if it was not asked."""
        return self._site_of.get(reply.metadata.src_node_id)

    def name_of(self, node: int) -> str:
        """Return the name of a node's site; ``node <id>`` if unknown."""
        card = self.membership.cards.get(node)
        return self._site_of.get(node) or (card.name if card else f"node {node}")

    def gone(self) -> frozenset[str]:
        """Refresh which sites are online; return the failed sites that are offline."""
        self.membership = without_offline(self.membership, set(self._grid.get_node_ids()))
        return frozenset(self._failed_at) - frozenset(self.membership.nodes)

    def message(
        self, site: str, node: int, kind: str, content: RecordDict, deadline_s: float
    ) -> Message:
        """Return a message to a site; it expires `LATE_WINDOW_S` after its deadline."""
        self._site_of[node] = site
        return Message(
            content,
            dst_node_id=node,
            message_type=kind,
            group_id=str(self._round),
            ttl=deadline_s + LATE_WINDOW_S,
        )

    def _may_be_asked(self, site: str) -> bool:
        return self.times[site] - self._excused[site] < MAX_REQUESTS

    def _pending_sites(self) -> set[str]:
        """Return the sites that were asked and have neither answered nor failed."""
        return set(self.times) - self.accepted - set(self._failed_at)

    def _return_deadlines(self) -> list[float]:
        """Return the time until which to wait for each site that failed and is offline."""
        if not self._again:
            return []
        now, online = time.monotonic(), self.membership.nodes
        return [
            since + self._wait_s
            for site, since in self._failed_at.items()
            if site not in online and self._may_be_asked(site) and now < since + self._wait_s
        ]

    def _ask(self, site: str, node: int) -> Message:
        self.times[site] += 1
        self._node_of[site] = node
        self._nodes_of.setdefault(site, set()).add(node)
        self._sent_at[site] = time.monotonic()
        self._failed_at.pop(site, None)
        left_s = self._left_s()
        content = self._content(site, left_s)
        self.traffic.send(site, content)
        return self.message(site, node, self._kind, content, left_s)

    def _left_s(self) -> float:
        return max(1.0, self.deadline_s - (time.monotonic() - self._started_at))

    def _look_up_sites(self) -> list[Message]:
        """Refresh which sites are online; return a hello for each unknown node."""
        self._looked_up_at = time.monotonic()
        online = set(self._grid.get_node_ids())
        known = without_offline(self.membership, online)
        known = late_introductions(known, self._grid, skip=self._greeted)
        self.membership, new = hellos(known, online - self._greeted)
        self._greeted |= {message.metadata.dst_node_id for message in new}
        return new
