"""Whom a round has asked, how often and with what success; and whom to ask again."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from strategies.exchange.deadline import Pacing
from strategies.exchange.membership import (
    HELLO_DEADLINE_S,
    Membership,
    hellos,
    introduced,
    without_gone,
)
from strategies.exchange.traffic import Traffic
from strategies.exchange.transport import is_no_reply

MAX_ASKS = 2
"""How often a site is asked in one attempt at a round."""

LOOK_S = 5.0
"""Seconds between two looks for sites that have come back while a round goes on."""

LATE_WINDOW_S = 60.0
"""How long after its deadline a message is still valid, so that a late reply is seen as late."""


class Requests:
    """One attempt at a round; an `RequestSource` for its exchange.

    A site that failed is asked once more; so is one that was restarted and comes back as a new
    node, whatever became of its old one. Once a quorum has answered, the slowest of those answers
    decides how long the other sites are waited for.

    Parameters
    ----------
    grid : Grid
        Asked who is online.
    membership : Membership
        Sites that are online at the start; kept up to date meanwhile.
    round_number : int
        Goes into every message.
    content : callable
        Returns the content of a message that is to be answered within so many seconds.
    deadline_s : float
        Seconds from now until when replies are waited for.
    wait_s : float
        How long a site that failed and went offline is hoped for, in seconds.
    kept : iterable of str
        Sites whose updates are here already.
    kind : str
        Flower's type of the messages.
    traffic : Traffic or None
        Told of every message; of all attempts at the round. None for a new one.
    pacing : Pacing or None
        The quorum, and how long each site usually takes. None to wait until the deadline.
    again : bool
        Whether sites that failed, or come while the round goes on, are asked.
    """

    def __init__(
        self,
        grid: Grid,
        membership: Membership,
        round_number: int,
        content: Callable[[float], RecordDict],
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
        self._took = {site: pacing.usual_s(site) if pacing else 0.0 for site in self.accepted}
        self._site_of: dict[int, str] = {}
        self._node_of: dict[str, int] = {}
        self._nodes_of: dict[str, set[int]] = {}
        self._greeted: dict[int, float] = {}
        self._sent_at: dict[str, float] = {}
        self._failed_at: dict[str, float] = {}
        self._started_at = self._looked_at = time.monotonic()

    def first(self) -> list[Message]:
        """Return a message for each site that is online and whose update is not here."""
        nodes = self.membership.nodes
        return [self._ask(site, nodes[site]) for site in nodes if site not in self.accepted]

    def due(self) -> Iterator[Message]:
        """Yield messages for sites that failed and are online, and for those that came back."""
        if not self._again:
            return
        if time.monotonic() - self._looked_at >= LOOK_S:
            yield from self._look()
        for site, node in self.membership.nodes.items():
            if site in self.accepted or self.times[site] >= MAX_ASKS:
                continue
            if site in self._failed_at or self._node_of.get(site) != node:
                yield self._ask(site, node)

    def introduce(self, reply: Message) -> None:
        """Take in what a node that came while the round goes on says of itself.

        One that has not answered is asked again: after a pause that grows, if it had its time.
        """
        asked_at = self._greeted.pop(reply.metadata.src_node_id, -math.inf)
        if not is_no_reply(reply) or time.monotonic() - asked_at >= HELLO_DEADLINE_S:
            self.membership = introduced(self.membership, reply, HELLO_DEADLINE_S)

    def settled(self) -> set[int]:
        """Return the nodes of sites whose updates are here, all that were asked.

        Once no update is waited for any more, strangers need not say who they are.
        """
        nodes = {node for site in self.accepted for node in self._nodes_of.get(site, ())}
        return nodes if self._at_work() or self.hopes() else nodes | set(self._greeted)

    def hopes(self) -> bool:
        """Return whether a site that failed is offline and may come back in time."""
        return bool(self._hopes_until())

    def limit_s(self) -> float:
        """Return after how many seconds no reply is waited for, as far as is known now."""
        if self._pacing is None:
            return math.inf
        at_work = self._at_work()
        patience_s = self._pacing.patience_s(self._took, at_work)
        ends = [self._sent_at[site] + patience_s for site in at_work]
        return max([*ends, *self._hopes_until()], default=math.inf) - self._started_at

    def accept(self, site: str) -> None:
        """Take note that a site's update counts."""
        self.accepted.add(site)
        self._failed_at.pop(site, None)
        self._took[site] = self.seconds_of(site)

    def seconds_of(self, site: str) -> float:
        """Return how long ago a site was asked, in seconds; 0 if it was not."""
        return time.monotonic() - self._sent_at[site] if site in self._sent_at else 0.0

    def reject(self, site: str) -> None:
        """Take note that a site's reply does not count; whether it is online is looked up."""
        self._failed_at[site] = time.monotonic()
        self._looked_at = float("-inf")

    def site_of(self, reply: Message) -> str | None:
        """Return the name of the site a reply comes from; None if it was not asked."""
        return self._site_of.get(reply.metadata.src_node_id)

    def name_of(self, node: int) -> str:
        """Return the name of the site behind a node, as far as this run knows it."""
        card = self.membership.cards.get(node)
        return self._site_of.get(node) or (card.name if card else f"node {node}")

    def gone(self) -> frozenset[str]:
        """Look who is online, and return the sites that failed and are not."""
        self.membership = without_gone(self.membership, set(self._grid.get_node_ids()))
        return frozenset(self._failed_at) - frozenset(self.membership.nodes)

    def message(
        self, site: str, node: int, kind: str, content: RecordDict, deadline_s: float
    ) -> Message:
        """Return a message to a site; void a while after its reply is waited for."""
        self._site_of[node] = site
        return Message(
            content,
            dst_node_id=node,
            message_type=kind,
            group_id=str(self._round),
            ttl=deadline_s + LATE_WINDOW_S,
        )

    def _at_work(self) -> set[str]:
        """Return the sites whose answers are on their way, as far as is known."""
        return set(self.times) - self.accepted - set(self._failed_at)

    def _hopes_until(self) -> list[float]:
        """Return until when each site is hoped for that failed and is offline."""
        if not self._again:
            return []
        now, online = time.monotonic(), self.membership.nodes
        return [
            since + self._wait_s
            for site, since in self._failed_at.items()
            if site not in online and self.times[site] < MAX_ASKS and now < since + self._wait_s
        ]

    def _ask(self, site: str, node: int) -> Message:
        self.times[site] += 1
        self._node_of[site] = node
        self._nodes_of.setdefault(site, set()).add(node)
        self._sent_at[site] = time.monotonic()
        self._failed_at.pop(site, None)
        left_s = self._left_s()
        content = self._content(left_s)
        self.traffic.send(site, content)
        return self.message(site, node, self._kind, content, left_s)

    def _left_s(self) -> float:
        return max(1.0, self.deadline_s - (time.monotonic() - self._started_at))

    def _look(self) -> list[Message]:
        """Look who is online; return a question for each node that is not known."""
        self._looked_at = time.monotonic()
        online = set(self._grid.get_node_ids())
        self.membership = without_gone(self.membership, online)
        new = hellos(self.membership, online - set(self._greeted), HELLO_DEADLINE_S)
        self._greeted |= {message.metadata.dst_node_id: self._looked_at for message in new}
        return new
