"""How long sites are waited for: at the start of a run, and for those that have gone."""

import math
import time
from collections.abc import Callable, Collection
from logging import WARNING

from flwr.serverapp import Grid

from strategies.common.errors import ConfigError, QuorumError
from strategies.common.log import log
from strategies.exchange.membership import HELLO_DEADLINE_S, HELLO_LEAST_S, Membership, refresh

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Pauses between two looks for sites; they grow with the time waited."""

TELL_S = 600.0
"""Seconds after which it is told again who is waited for."""


def wait_for_sites(
    grid: Grid,
    num_sites: int | None,
    wait_s: float,
    min_sites: int | None = None,
    on_progress: Callable[[Membership, int | None], None] = lambda membership, expected: None,
    membership: Membership | None = None,
    *,
    known: Collection[str] = (),
    absent: Collection[str] = (),
    patience_s: float = 0.0,
    on_wait: Callable[[Membership, float], None] = lambda membership, left_s: None,
) -> Membership:
    """Wait, for a bounded time, until every expected site is online.

    Parameters
    ----------
    grid
        Flower's message transport.
    num_sites
        Sites to wait for; None takes the number of simulated sites there are.
    wait_s
        Longest wait, in seconds.
    min_sites
        With so many, the run goes on when the time is over; None for all that are expected.
    on_progress
        Called with the membership and the number expected (None while unknown) on each change.
    membership
        What is known at the start; None for nothing.
    known, absent
        Of a run that goes on: real sites that took part before, and those of them that had gone.
        With the quorum, it is enough that all others are there.
    patience_s
        Longest wait for the quorum of real sites, in seconds, where it is longer than ``wait_s``.
    on_wait
        Called with the membership and the seconds left, now and then, while only the quorum lacks.

    Raises
    ------
    QuorumError
        If fewer sites are online when the time is over, naming those that are.
    ConfigError
        If ``num_sites`` is None and the sites are real.
    """
    awaited = set(known) - set(absent)

    def expected(membership: Membership) -> int | None:
        return num_sites or membership.num_partitions or None

    def has_quorum(membership: Membership) -> bool:
        needed = min_sites or expected(membership)
        return needed is not None and len(membership.nodes) >= needed

    def is_complete(membership: Membership) -> bool:
        number = expected(membership)
        if number is not None and len(membership.nodes) >= number:
            return True
        back = awaited and not membership.num_partitions and awaited <= set(membership.nodes)
        return bool(back) and has_quorum(membership)

    def look(before: Membership, now: Membership) -> None:
        if now != before:
            on_progress(now, expected(now))
        _check_number(num_sites, now)

    membership = _wait(membership or Membership(), grid, is_complete, wait_s, look)
    if not (has_quorum(membership) or membership.num_partitions) and patience_s > wait_s:
        membership = _wait(membership, grid, has_quorum, patience_s - wait_s, look, on_wait)
        wait_s = patience_s
    number = expected(membership)
    online = ", ".join(membership.nodes) or "no site"
    if not has_quorum(membership):
        raise QuorumError(
            f"only {len(membership.nodes)} of {number or 'the expected'} sites came online "
            f"within {wait_s:g} s",
            where="num-sites",
            got=online + "".join(f"; refused: {why}" for why in membership.refused.values()),
            expected=f"{min_sites} or more" if min_sites else "",
            hint="Start the missing sites, or change num-sites, min-sites or wait-for-sites-s",
        )
    if number is not None and len(membership.nodes) < number:
        log(WARNING, "going on with %d of %d sites: %s", len(membership.nodes), number, online)
    return membership


def _check_number(num_sites: int | None, membership: Membership) -> None:
    if num_sites is None and membership.cards and membership.num_partitions == 0:
        raise ConfigError(
            "how many real sites to wait for is not set",
            where="num-sites",
            got=0,
            expected="the number of sites that take part",
        )


def wait_until_online(
    membership: Membership,
    grid: Grid,
    enough: Callable[[Collection[str]], bool],
    wait_s: float,
    on_wait: Callable[[Membership, float], None] = lambda membership, left_s: None,
) -> Membership:
    """Wait, for a bounded time, until enough sites are online; return who is online then.

    ``on_wait`` is called with the membership and the seconds left: at first, whenever another
    site is online, and every `TELL_S` seconds.
    """
    return _wait(membership, grid, lambda now: enough(now.nodes), wait_s, on_wait=on_wait)


def _wait(
    membership: Membership,
    grid: Grid,
    enough: Callable[[Membership], bool],
    wait_s: float,
    look: Callable[[Membership, Membership], None] = lambda before, now: None,
    on_wait: Callable[[Membership, float], None] = lambda membership, left_s: None,
) -> Membership:
    started, told_at = time.monotonic(), -math.inf
    while True:
        # The last look comes after the time is over: a site may have come during the one before.
        elapsed_s = time.monotonic() - started
        left_s = wait_s - elapsed_s
        hello_s = min(HELLO_DEADLINE_S, max(SHORTEST_PAUSE_S, left_s))
        before, membership = membership, refresh(membership, grid, hello_s, HELLO_LEAST_S)
        look(before, membership)
        if enough(membership) or left_s <= 0:
            return membership
        if elapsed_s - told_at >= TELL_S or before.nodes.keys() != membership.nodes.keys():
            told_at = elapsed_s
            on_wait(membership, left_s)
        pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, 0.02 * elapsed_s))
        time.sleep(min(pause_s, left_s))
