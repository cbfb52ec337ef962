"""Wait for sites: at the start of a run, and for sites that went offline."""

import math
import time
from collections.abc import Callable, Collection
from logging import WARNING

from flwr.serverapp import Grid

from strategies.common.errors import ConfigError, QuorumError
from strategies.common.log import log
from strategies.exchange.membership import NEWCOMER_S, Membership, refresh

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Shortest and longest pause between two checks for sites; pauses grow with the time waited."""

REPORT_INTERVAL_S = 600.0
"""Seconds between two reports of the awaited sites."""


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
    """Wait, for a limited time, until every expected site is online.

    Parameters
    ----------
    grid
        Flower's message transport.
    num_sites
        Number of sites to wait for; None for the number of simulated sites.
    wait_s
        Longest wait, in seconds.
    min_sites
        Number of sites required when the time is over; None for all expected sites.
    on_progress
        Called on each change, with the membership and the expected number of sites (None while
        unknown).
    membership
        The membership known at the start; None if there is none.
    known, absent
        In a resumed run: real sites that took part before, and those of them that had gone
        offline. If the quorum is met, the wait ends once all sites in ``known`` but not in
        ``absent`` are online.
    patience_s
        Longest wait for the quorum of real sites, in seconds, if longer than ``wait_s``.
    on_wait
        Called at regular intervals during the extra wait for the quorum, with the membership and
        the seconds left.

    Raises
    ------
    QuorumError
        If too few sites are online when the time is over; the error names those that are.
    ConfigError
        If ``num_sites`` is None and the sites are real.
    """
    awaited, started = set(known) - set(absent), time.monotonic()
    key = "wait-for-sites-s"

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
        key = "quorum-patience-s"
    number = expected(membership)
    online = ", ".join(membership.nodes) or "no site"
    if not has_quorum(membership):
        raise QuorumError(
            f"only {len(membership.nodes)} of {number or 'the expected'} sites came online "
            f"within {time.monotonic() - started:.0f} s",
            where="num-sites",
            got=online + _why_not_all(membership),
            expected=f"{min_sites} or more" if min_sites else "",
            hint=f"Start the missing sites, or change num-sites, min-sites or {key}",
        )
    if number is not None and len(membership.nodes) < number:
        log(WARNING, "continuing with %d of %d sites: %s", len(membership.nodes), number, online)
    return membership


def _why_not_all(membership: Membership) -> str:
    refused = [f"; refused: {why}" for why in membership.refused.values()]
    silent = set(membership.silent) - set(membership.refused)
    named = sorted(map(membership.admission.name_of, silent))
    unanswered = f"; online, but gave no name yet: {', '.join(named)}" if named else ""
    missing = sorted(set(membership.missing) - set(named))
    away = f"; not online: {', '.join(missing)}" if missing else ""
    return "".join([*refused, unanswered, away])


def _check_number(num_sites: int | None, membership: Membership) -> None:
    if num_sites is None and membership.cards and membership.num_partitions == 0:
        raise ConfigError(
            "the number of real sites to wait for is not set",
            where="num-sites",
            got=0,
            expected="the number of participating sites",
        )


def wait_until_online(
    membership: Membership,
    grid: Grid,
    enough: Callable[[Collection[str]], bool],
    wait_s: float,
    on_wait: Callable[[Membership, float], None] = lambda membership, left_s: None,
) -> Membership:
    """Wait, for a limited time, until enough sites are online; return the membership.

    ``on_wait`` is called with the membership and the seconds left: at first, whenever the online
    sites change, and every `REPORT_INTERVAL_S` seconds.
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
    started, reported_at = time.monotonic(), -math.inf
    while True:
        # Check once more after the time is over: a site may have come during the previous check.
        elapsed_s = time.monotonic() - started
        left_s = wait_s - elapsed_s
        hello_s = min(NEWCOMER_S, max(SHORTEST_PAUSE_S, left_s))
        before, membership = membership, refresh(membership, grid, hello_s, NEWCOMER_S)
        look(before, membership)
        if enough(membership) or left_s <= 0:
            return membership
        changed = before.nodes.keys() != membership.nodes.keys()
        if elapsed_s - reported_at >= REPORT_INTERVAL_S or changed:
            reported_at = elapsed_s
            on_wait(membership, left_s)
        pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, 0.02 * elapsed_s))
        time.sleep(min(pause_s, left_s))
