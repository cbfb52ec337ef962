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
from strategies.exchange.transport import exchange, from_node, is_no_reply

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
"""Time to live of a hello. Its answer counts until then, whoever is waiting for it."""

NEWCOMER_S = 30.0
"""Shortest wait for a new node's answer: a SuperNode polls every 3 s and then starts a process."""

LONGEST_PAUSE_S = 600.0
"""Longest pause until a node that did not answer is asked again."""

REFUSED_PAUSE_S = 30.0
"""Seconds until a refused node is asked again; by then it may be admitted, or may be mended."""


@dataclass(frozen=True)
class Silence:
    """A node that has not introduced itself.

    Attributes
    ----------
    times : int
        Number of hellos that expired without an answer.
    ask_at : float
        When to ask the node again (monotonic time).
    hello : Message or None
        The hello whose answer still counts; it has a message id once it was sent.
    """

    times: int
    ask_at: float
    hello: Message | None = None


@dataclass(frozen=True)
class Membership:
    """The nodes known so far.

    Attributes
    ----------
    cards : Mapping[int, SiteCard]
        The site card of each admitted node that is online, by node id.
    refused : Mapping[int, str]
        Reason for each refused node, by node id. These nodes are in ``silent`` as well, so that
        they are asked again after a pause.
    names : frozenset of str
        Every site that may be expected: it is registered, or has been online in this run.
    silent : Mapping[int, Silence]
        Online nodes that are not admitted, by node id, with the time at which to ask them next.
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
        """Return the known sites that are not online, in site order."""
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
    out; if it answers later, the next call admits it. When its hello has expired, it is asked
    again: at once after the first time, then after growing pauses. A refused node is asked again
    as well, because it may be mended or admitted by then. If any node is asked for the first time,
    the deadline is at least ``newcomer_s`` seconds.
    """
    deadline_s = HELLO_DEADLINE_S if deadline_s is None else deadline_s
    online = set(grid.get_node_ids())
    membership = late_introductions(without_offline(membership, online), grid)
    if online - {*membership.cards, *membership.silent}:
        deadline_s = max(deadline_s, newcomer_s)
    membership, messages = hellos(membership, online)
    for reply in exchange(grid, messages, deadline_s):
        membership = introduced(membership, reply)
    return membership


def late_introductions(
    membership: Membership, grid: Grid, skip: Collection[int] = ()
) -> Membership:
    """Return the membership with the answers that have come in since nobody waited for them.

    Parameters
    ----------
    skip
        Nodes whose answers another exchange is waiting for.
    """
    for node, silence in membership.silent.items():
        if silence.hello is None or node in skip:
            continue
        if (reply := _late_reply(grid, silence.hello)) is not None:
            membership = introduced(membership, reply)
        elif time.monotonic() >= silence.ask_at:
            membership = _with_expired_hello(membership, node)
    return membership


def _late_reply(grid: Grid, hello: Message) -> Message | None:
    sent = hello.metadata.message_id
    if not sent:  # the exchange ended before the hello was sent
        return None
    replies = list(grid.pull_messages([sent]))
    return from_node(replies[0], hello) if replies else None


def _with_expired_hello(membership: Membership, node: int) -> Membership:
    if node not in membership.silent:  # it has gone offline meanwhile
        return membership
    times = membership.silent[node].times + 1
    pause_s = min(LONGEST_PAUSE_S, HELLO_DEADLINE_S * (2 ** (times - 1) - 1))
    log(WARNING, "%s did not introduce itself", membership.admission.name_of(node))
    silence = Silence(times, time.monotonic() + pause_s)
    return replace(membership, silent={**membership.silent, node: silence})


def without_offline(membership: Membership, online: Collection[int]) -> Membership:
    """Return the membership without offline nodes; site names are kept."""
    return replace(
        membership,
        cards={node: card for node, card in membership.cards.items() if node in online},
        refused={node: why for node, why in membership.refused.items() if node in online},
        silent={node: silence for node, silence in membership.silent.items() if node in online},
    )


def hellos(membership: Membership, online: Collection[int]) -> tuple[Membership, list[Message]]:
    """Return a hello for each online node to ask, and the membership that waits for the answers."""
    now, silent = time.monotonic(), dict(membership.silent)
    waiting = {node for node, silence in silent.items() if now < silence.ask_at}
    messages = [
        Message(
            RecordDict(), dst_node_id=node, message_type=MessageType.QUERY, ttl=HELLO_DEADLINE_S
        )
        for node in sorted(set(online) - set(membership.cards) - waiting)
    ]
    refused = dict(membership.refused)
    for hello in messages:
        node = hello.metadata.dst_node_id
        times = silent[node].times if node in silent else 0
        silent[node] = Silence(times, now + HELLO_DEADLINE_S, hello)
        refused.pop(node, None)
    return replace(membership, silent=silent, refused=refused), messages


def introduced(membership: Membership, reply: Message) -> Membership:
    """Return the membership updated with a reply to a hello."""
    node = reply.metadata.src_node_id
    if is_no_reply(reply):
        return _with_expired_hello(membership, node)
    cards, refused = dict(membership.cards), dict(membership.refused)
    silent = dict(membership.silent)
    silent.pop(node, None)
    refused.pop(node, None)
    try:
        # Insert the node last, so that `nodes` picks it as its site's node.
        cards.pop(node, None)
        cards[node] = _read_card(reply)
        _admit(membership, node, cards[node])
    except MdcError as error:
        cards.pop(node, None)
        refused[node] = f"{membership.admission.name_of(node)}: {error}"
        silent[node] = Silence(0, time.monotonic() + REFUSED_PAUSE_S)
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
