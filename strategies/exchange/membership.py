"""Which sites are there, by name.

Flower's node ids are drawn anew in every run, so a node is asked who it is once, and from then
on only its site name is used: in plans, random streams, records and error messages.
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
"""Returns why a node, by its id and what it says of itself, takes no part; None to admit it."""


@dataclass(frozen=True)
class Admission:
    """Who may take part.

    Attributes
    ----------
    judge : Judge
        Asked of every node that says who it is.
    name_of : callable
        Returns what to call a node that has not said it.
    """

    judge: Judge = lambda node, card: None
    name_of: Callable[[int], str] = lambda node: f"node {node}"


HELLO_DEADLINE_S = 120.0

HELLO_LEAST_S = 30.0
"""A hello lives no shorter: a SuperNode asks for messages every 3 s, and then starts a process."""

ADMISSION_PAUSE_S = 30.0
"""Seconds after which a node that was not admitted is judged again: it may be by then."""


@dataclass(frozen=True)
class Silence:
    """How often a node left a hello unanswered, and when it is asked again (monotonic time)."""

    times: int
    ask_at: float


@dataclass(frozen=True)
class Membership:
    """The nodes known so far.

    Attributes
    ----------
    cards : Mapping[int, SiteCard]
        What each node that is online said of itself, by node id.
    refused : Mapping[int, str]
        Nodes that take no part, with the reason, by node id. Those that were not admitted are
        among the silent as well: they are asked again after a pause.
    names : frozenset of str
        Every site that has been online in this run.
    silent : Mapping[int, Silence]
        Nodes that did not say who they are, by node id.
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
        """Return whether the sites are those of Flower's simulation engine."""
        # All of them: no real site can make a simulation of a federation by saying so.
        return bool(self.cards) and all(card.simulated for card in self.cards.values())

    @property
    def nodes(self) -> dict[str, int]:
        """Return the node id of each site that is online, in site order.

        A site that was restarted comes back as a new node while its old one still counts as
        online; the node heard last is the one that speaks for the name.
        """
        latest = {card.name: node for node, card in self.cards.items()}
        return dict(sorted(latest.items()))

    @property
    def machines(self) -> dict[str, str]:
        """Return what each site that is online computes with, as far as it says so."""
        told = {name: self.cards[node].machine for name, node in self.nodes.items()}
        return {name: machine for name, machine in told.items() if machine}

    @property
    def missing(self) -> list[str]:
        """Return the sites that have been online and are not now, in site order."""
        return sorted(self.names - set(self.nodes))

    @property
    def num_partitions(self) -> int:
        """Return into how many parts a data set is cut, of which each site has one; 0 for none.

        All sites must say the same: none can make parts of what others hold as their own.
        """
        claims = {card.num_partitions for card in self.cards.values()}
        return claims.pop() if len(claims) == 1 else 0

    @property
    def num_examples(self) -> dict[str, int]:
        """Return the size of each site's data set, of the sites that said it."""
        told = {name: self.cards[node].num_examples for name, node in self.nodes.items()}
        return {name: count for name, count in told.items() if count}


def refresh(
    membership: Membership, grid: Grid, deadline_s: float | None = None, newcomer_s: float = 0.0
) -> Membership:
    """Return the membership of the nodes that are online now, asking new ones who they are.

    A node that does not answer within ``deadline_s`` seconds (None: `HELLO_DEADLINE_S`) is
    not in it, and is asked again: at once after the first time, then after pauses that grow, so
    that a hung one costs a small part of the time. One that refuses, or cannot say who it is,
    is not asked again while it stays online. While one is asked for the first time, the
    deadline is ``newcomer_s`` seconds or more.
    """
    deadline_s = HELLO_DEADLINE_S if deadline_s is None else deadline_s
    online = set(grid.get_node_ids())
    membership = without_gone(membership, online)
    if online - {*membership.cards, *membership.refused, *membership.silent}:
        deadline_s = max(deadline_s, newcomer_s)
    for reply in exchange(grid, hellos(membership, online, deadline_s), deadline_s):
        membership = introduced(membership, reply, deadline_s)
    return membership


def without_gone(membership: Membership, online: Collection[int]) -> Membership:
    """Return the membership without the nodes that are not online; the names of sites stay."""
    return replace(
        membership,
        cards={node: card for node, card in membership.cards.items() if node in online},
        refused={node: why for node, why in membership.refused.items() if node in online},
        silent={node: silence for node, silence in membership.silent.items() if node in online},
    )


def hellos(membership: Membership, online: Collection[int], deadline_s: float) -> list[Message]:
    """Return a question for each node that is online and not known; see `refresh`."""
    now = time.monotonic()
    waiting = {node for node, silence in membership.silent.items() if now < silence.ask_at}
    for_good = set(membership.refused) - set(membership.silent)
    new = set(online) - set(membership.cards) - for_good - waiting
    life_s = max(deadline_s, HELLO_LEAST_S)
    return [
        Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY, ttl=life_s)
        for node in sorted(new)
    ]


def introduced(membership: Membership, reply: Message, deadline_s: float) -> Membership:
    """Return the membership with what a node said of itself, or with its silence."""
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
        log(WARNING, "%s did not say who it is within %g s", name, deadline_s)
    else:
        try:
            # The node heard last comes last: it is the one that speaks for its site.
            cards.pop(node, None)
            cards[node] = _read_card(reply)
            _admit(membership, node, cards[node])
        except MdcError as error:
            refused[node] = f"{membership.admission.name_of(node)}: {error}"
            if cards.pop(node, None):
                # Who is admitted may change while the run goes on; what the node is, does not.
                silent[node] = Silence(0, time.monotonic() + ADMISSION_PAUSE_S)
            log(WARNING, "a node takes no part: %s", refused[node])
    names = membership.names | {card.name for card in cards.values()}
    return replace(membership, cards=cards, refused=refused, names=names, silent=silent)


def _read_card(reply: Message) -> SiteCard:
    if reply.has_error():
        raise RunError(f"it could not say who it is: {reply.error.reason}")
    return SiteCard.from_content(reply.content)


def _admit(membership: Membership, node: int, card: SiteCard) -> None:
    if reason := membership.admission.judge(node, card):
        raise RunError(reason, where=f"site {card.name!r}")
