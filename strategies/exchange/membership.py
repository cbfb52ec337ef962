"""Membership: which sites are known and online, by name.

Flower draws new node ids in every run. So each node is asked once for its site name, and from then
on only the name is used: in plans, random streams, records and error messages.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from logging import WARNING

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from strategies.common.errors import MdcError, RunError
from strategies.common.log import log
from strategies.exchange.messages import SiteCard
from strategies.exchange.transport import exchange, is_no_reply

Judge = Callable[[int, SiteCard], str | None]
"""Takes a node id and a site card; returns why the node is refused, or None to admit it."""


@dataclass(frozen=True)
class Admission:
    """Who may take part.

    Attributes
    ----------
    judge : Judge
        Called for every node that introduces itself.
    name_of : callable
        Returns a display name for a node without a known site name.
    """

    judge: Judge = lambda node, card: None
    name_of: Callable[[int], str] = lambda node: f"node {node}"


HELLO_DEADLINE_S = 120.0

HELLO_MIN_TTL_S = 30.0
"""Shortest time to live of a hello: a SuperNode polls every 3 s and then starts a process."""

ADMISSION_PAUSE_S = 30.0
"""Seconds until a refused node is asked again; it may be admitted by then."""


@dataclass(frozen=True)
class Silence:
    """How many hellos a node left unanswered, and when to ask it again (monotonic time)."""

    times: int
    ask_at: float


@dataclass(frozen=True)
class Membership:
    """The nodes known so far.

    Attributes
    ----------
    cards : Mapping[int, SiteCard]
        The site card of each admitted node that is online, by node id.
    refused : Mapping[int, str]
        Reason for each refused node, by node id. Nodes refused by ``admission`` are in ``silent``
        as well, so that they are asked again after a pause.
    names : frozenset of str
        Every site that has been online in this run.
    silent : Mapping[int, Silence]
        Nodes that did not answer a hello, by node id.
    admission : Admission
        Who may take part.
    """

    cards: Mapping[int, SiteCard] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    silent: Mapping[int, "Silence"] = field(default_factory=dict)
    admission: Admission = Admission()

    @property
    def simulated(self) -> bool:
        """Return whether all sites belong to Flower's simulation engine."""
        # Requiring all sites prevents one real site from claiming that the run is a simulation.
        return bool(self.cards) and all(card.simulated for card in self.cards.values())

    @property
    def nodes(self) -> dict[str, int]:
        """Return the node id of each site that is online, in site order.

        A restarted site comes back as a new node while its old node still counts as online. The
        node that introduced itself last represents the site.
        """
        latest = {card.name: node for node, card in self.cards.items()}
        return dict(sorted(latest.items()))

    @property
    def machines(self) -> dict[str, str]:
        """Return the hardware description of each online site that reported one."""
        reported = {name: self.cards[node].machine for name, node in self.nodes.items()}
        return {name: machine for name, machine in reported.items() if machine}

    @property
    def missing(self) -> list[str]:
        """Return the sites that have been online but are offline now, in site order."""
        return sorted(self.names - set(self.nodes))

    @property
    def num_partitions(self) -> int:
        """Return the number of parts into which the data set is split, one per site; 0 for none.

        All sites must report the same number. This prevents one site from turning the data sets of
        other sites into partitions.
        """
        claims = {card.num_partitions for card in self.cards.values()}
        return claims.pop() if len(claims) == 1 else 0

    @property
    def num_examples(self) -> dict[str, int]:
        """Return the data set size of each online site that reported one."""
        reported = {name: self.cards[node].num_examples for name, node in self.nodes.items()}
        return {name: count for name, count in reported.items() if count}


def refresh(
    membership: Membership, grid: Grid, deadline_s: float | None = None, newcomer_s: float = 0.0
) -> Membership:
    """Return the membership of the nodes that are online now; ask new nodes for their site name.

    A node that does not answer within ``deadline_s`` seconds (None: `HELLO_DEADLINE_S`) is left
    out and asked again: at once after the first time, then after growing pauses, so that a hung
    node takes little of the total time. A node that answers with an error or without a valid site
    card is not asked again while it stays online. If any node is asked for the first time, the
    deadline is at least ``newcomer_s`` seconds.
    """
    deadline_s = HELLO_DEADLINE_S if deadline_s is None else deadline_s
    online = set(grid.get_node_ids())
    membership = without_offline(membership, online)
    if online - {*membership.cards, *membership.refused, *membership.silent}:
        deadline_s = max(deadline_s, newcomer_s)
    for reply in exchange(grid, hellos(membership, online, deadline_s), deadline_s):
        membership = introduced(membership, reply, deadline_s)
    return membership


def without_offline(membership: Membership, online: Collection[int]) -> Membership:
    """Return the membership without offline nodes; site names are kept."""
    return replace(
        membership,
        cards={node: card for node, card in membership.cards.items() if node in online},
        refused={node: why for node, why in membership.refused.items() if node in online},
        silent={node: silence for node, silence in membership.silent.items() if node in online},
    )


def hellos(membership: Membership, online: Collection[int], deadline_s: float) -> list[Message]:
    """Return a hello for each online node whose site is not known; see `refresh`."""
    now = time.monotonic()
    waiting = {node for node, silence in membership.silent.items() if now < silence.ask_at}
    for_good = set(membership.refused) - set(membership.silent)
    new = set(online) - set(membership.cards) - for_good - waiting
    life_s = max(deadline_s, HELLO_MIN_TTL_S)
    return [
        Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY, ttl=life_s)
        for node in sorted(new)
    ]


def introduced(membership: Membership, reply: Message, deadline_s: float) -> Membership:
    """Return the membership updated with a node's reply to a hello, or with its missing reply."""
    node = reply.metadata.src_node_id
    cards, refused, silent = (
        dict(membership.cards),
        dict(membership.refused),
        dict(membership.silent),
    )
    before, _ = silent.pop(node, None), refused.pop(node, None)
    if is_no_reply(reply):
        times = before.times + 1 if before else 1
        pause_s = deadline_s * (2 ** (times - 1) - 1)
        silent[node] = Silence(times, time.monotonic() + pause_s)
        name = membership.admission.name_of(node)
        log(WARNING, "%s did not introduce itself within %g s", name, deadline_s)
    else:
        try:
            # Insert the node last, so that `nodes` picks it as its site's node.
            cards.pop(node, None)
            cards[node] = _read_card(reply)
            _admit(membership, node, cards[node])
        except MdcError as error:
            refused[node] = f"{membership.admission.name_of(node)}: {error}"
            if cards.pop(node, None):
                # Admission may change during the run, so this node is asked again. Other errors
                # are permanent.
                silent[node] = Silence(0, time.monotonic() + ADMISSION_PAUSE_S)
            log(WARNING, "a node was refused: %s", refused[node])
    names = membership.names | {card.name for card in cards.values()}
    return replace(membership, cards=cards, refused=refused, names=names, silent=silent)


def _read_card(reply: Message) -> SiteCard:
    if reply.has_error():
        raise RunError(f"the node could not introduce itself: {reply.error.reason}")
    return SiteCard.from_content(reply.content)


def _admit(membership: Membership, node: int, card: SiteCard) -> None:
    if reason := membership.admission.judge(node, card):
        raise RunError(reason, where=f"site {card.name!r}")
