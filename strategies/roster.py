"""Which sites are there, by name.

Flower's node ids are drawn anew in every run, so a node is asked who it is once, and from then
on only its site name is used: in plans, random streams, records and error messages.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from strategies.errors import MdcError, RunError
from strategies.exchange import exchange
from strategies.messages import SiteCard

HELLO_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Roster:
    """The nodes known so far.

    Attributes
    ----------
    cards : Mapping[int, SiteCard]
        What each node said of itself, by node id.
    refused : Mapping[int, str]
        Nodes that take no part, with the reason, by node id.
    """

    cards: Mapping[int, SiteCard] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def nodes(self) -> dict[str, int]:
        """Return the node id of each site, in site order.

        A site that was restarted comes back as a new node while its old one still counts as
        online; the node heard last is the one that speaks for the name.
        """
        latest = {card.name: node for node, card in self.cards.items()}
        return dict(sorted(latest.items()))

    @property
    def num_partitions(self) -> int:
        """Return how many simulated sites there are in all; 0 when the sites are real."""
        return max((card.num_partitions for card in self.cards.values()), default=0)


def refresh(roster: Roster, grid: Grid, deadline_s: float | None = None) -> Roster:
    """Return the roster of the nodes that are online now, asking new ones who they are.

    A node that does not answer within ``deadline_s`` seconds (None: `HELLO_DEADLINE_S`) is
    refused, so that a hung one costs a run that time once and not in every round.
    """
    deadline_s = HELLO_DEADLINE_S if deadline_s is None else deadline_s
    online = set(grid.get_node_ids())
    cards = {node: card for node, card in roster.cards.items() if node in online}
    refused = {node: why for node, why in roster.refused.items() if node in online}
    new = sorted(online - set(cards) - set(refused))
    hellos = [
        Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY, ttl=deadline_s)
        for node in new
    ]
    for reply in exchange(grid, hellos, deadline_s):
        node = reply.metadata.src_node_id
        try:
            cards[node] = _read_card(reply)
        except MdcError as error:
            refused[node] = str(error)
    return Roster(cards, refused)


def _read_card(reply: Message) -> SiteCard:
    if reply.has_error():
        raise RunError(f"the node could not say who it is: {reply.error.reason}")
    return SiteCard.from_content(reply.content)


def wait_for_sites(
    grid: Grid,
    num_sites: int | None,
    wait_s: float,
    on_progress: Callable[[Roster, int | None], None] = lambda roster, expected: None,
) -> Roster:
    """Wait, for a bounded time, until every expected site is online.

    Parameters
    ----------
    grid
        Flower's message transport.
    num_sites
        Sites to wait for; None takes the number of simulated sites there are.
    wait_s
        Longest wait, in seconds.
    on_progress
        Called with the roster and the number expected (None while unknown) on each change.

    Raises
    ------
    RunError
        If fewer sites are online when the time is over, naming those that are; or if
        ``num_sites`` is None and the sites are real.
    """
    started = time.monotonic()
    roster = Roster()
    while True:
        # The last look comes after the time is over: a site may have come during the one before.
        left_s = wait_s - (time.monotonic() - started)
        known, roster = roster, refresh(roster, grid, min(HELLO_DEADLINE_S, max(0.1, left_s)))
        expected = num_sites or roster.num_partitions or None
        if roster != known:
            on_progress(roster, expected)
        if expected is not None and len(roster.nodes) >= expected:
            return roster
        if num_sites is None and roster.cards and roster.num_partitions == 0:
            raise RunError(
                "how many real sites to wait for is not set",
                where="num-sites",
                got=0,
                expected="the number of sites that take part",
            )
        if left_s <= 0:
            raise RunError(
                f"only {len(roster.nodes)} of {expected or 'the expected'} sites came online "
                f"within {wait_s:g} s",
                where="num-sites",
                got=f"{', '.join(roster.nodes) or 'no site'}"
                + "".join(f"; a node refused: {why}" for why in roster.refused.values()),
                hint="Start the missing sites, or change num-sites or wait-for-sites-s",
            )
        time.sleep(min(0.2, max(0.0, left_s)))
