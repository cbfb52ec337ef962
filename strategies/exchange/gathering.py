"""Gathering: the engine of every exchange with the sites.

It asks the sites, checks the replies as they arrive, stores the accepted ones, and repeats the
exchange below the quorum. What is asked, and how a reply is checked, is a `Request`.

- A site whose reply is rejected or missing gets one more request while there is time. If that
  fails too, the exchange goes on without it, and the outcome names the site.
- An exchange with fewer replies than the quorum is repeated; only sites without a stored reply
  get a request. After the last attempt the run stops.
- Replies are stored before they count. If the coordinator dies, it later asks only the sites
  whose replies were not stored.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Protocol

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from strategies.aggregation.averaging import Update
from strategies.common.errors import EngineError
from strategies.common.fault_points import reach
from strategies.common.log import log
from strategies.exchange.attendance import Attendance, Awaited
from strategies.exchange.causes import Cause
from strategies.exchange.deadline import Pacing
from strategies.exchange.example_counts import Claims
from strategies.exchange.gate import Rejection, engine_died
from strategies.exchange.messages import is_shortened
from strategies.exchange.outcome import Outcome
from strategies.exchange.requests import Requests
from strategies.exchange.too_few_sites import Waited, too_few
from strategies.exchange.traffic import Traffic
from strategies.exchange.transport import Exchange
from strategies.exchange.update_store import UpdateStore


@dataclass(frozen=True)
class Request:
    """What to ask of every site, and how to check a reply.

    Attributes
    ----------
    kind : str
        Flower's type of the messages.
    plan_id : str
        Identifies the request across processes; stored replies to other requests do not count.
    round : int
        Round number in every message.
    what : str
        What a reply contains, in the plural, for messages: ``updates``.
    content : callable
        Takes a site's name and the seconds left to answer; returns the content of its message.
    judge : callable
        Takes a reply and the name of its site; returns the update, or a rejection with the reason.
    steps : int
        Optimizer steps for which the sites train; 0 if their work is not counted in steps.
    """

    kind: str
    plan_id: str
    round: int
    what: str
    content: Callable[[str, float], RecordDict]
    judge: Callable[[Message, str], Update | Rejection]
    steps: int = 0


@dataclass(frozen=True)
class Terms:
    """The terms of an exchange.

    Attributes
    ----------
    min_sites : int
        The quorum: an exchange with fewer replies is repeated.
    max_retries : int
        How often an exchange is repeated before the run stops.
    wait_s : float
        Longest wait, in seconds, for sites that went offline, both before and during an exchange.
    quorum_patience_s : float
        Longest wait, in seconds, for the quorum, if longer than ``wait_s``.
    again : bool
        Whether to ask sites that failed, or that come online during the exchange.
    """

    min_sites: int = 1
    max_retries: int = 2
    wait_s: float = 600.0
    quorum_patience_s: float = 0.0
    again: bool = True

    @property
    def quorum_wait_key(self) -> str:
        """Return the run config key that limits the wait for the quorum."""
        longer = self.quorum_patience_s > self.wait_s
        return "quorum-patience-s" if longer else "wait-for-sites-s"


class Listener(Protocol):
    """Receives notifications of events in an exchange."""

    def awaited(self, awaited: Awaited) -> None:
        """Handle that the exchange waits for sites."""
        ...

    def asked(self, sites: list[str], kept: list[str]) -> None:
        """Handle that ``sites`` are about to be asked; replies of ``kept`` are already stored."""
        ...

    def answered(self, site: str, reason: str | None) -> None:
        """Handle a site's reply; ``reason`` is why it was rejected, None if it was accepted."""
        ...

    def repeated(self) -> None:
        """Handle that the exchange is about to be repeated below the quorum."""
        ...


class Silent:
    """A `Listener` that does nothing."""

    def awaited(self, *args: object) -> None:
        """Do nothing."""

    asked = answered = repeated = awaited


class Gathering:
    """One exchange with the sites, over all of its attempts.

    Parameters
    ----------
    request : Request
        What to ask.
    outcome : Outcome
        The record of the exchange, filled in as it goes on.
    sites : Attendance
        Sites that are online, and sites that are no longer waited for; updated by each attempt.
    terms : Terms
        Quorum, attempts and waits.
    pacing : Pacing
        How long to wait for replies.
    claims : Claims
        Numbers of examples that the sites have reported.
    store : UpdateStore
        Stores the accepted replies.
    listener : Listener
        Notified of every event.

    Attributes
    ----------
    requests : Requests or None
        The current attempt.
    """

    def __init__(
        self,
        request: Request,
        outcome: Outcome,
        sites: Attendance,
        *,
        terms: Terms,
        pacing: Pacing,
        claims: Claims,
        store: UpdateStore,
        listener: Listener,
    ) -> None:
        self.request = request
        self.outcome = outcome
        self.sites = sites
        self.terms = terms
        self.requests: Requests | None = None
        self._pacing = pacing
        self._claims = claims
        self._store = store
        self._listener = listener
        store.open(request.plan_id)
        self._traffic = Traffic.from_updates(store.updates())

    def gather(self, grid: Grid, exchange: Exchange) -> list[Update]:
        """Ask until the quorum is met; return all stored replies, in site order.

        Raises
        ------
        QuorumError
            If too few sites answered in every attempt.
        SiteInputError
            If too few sites answered because sites cannot use their config, data or model.
        EngineError
            If a simulation worker died.
        """
        while True:
            updates = self.take(self.replies(self.ask(grid), exchange))
            if self.has_quorum(updates):
                return updates
            self.repeat(updates)

    def ask(self, grid: Grid) -> list[Message]:
        """Begin an attempt: wait for sites that went offline, then return the messages to send.

        There is one message for each online site without a stored reply.
        """
        outcome, terms, request = self.outcome, self.terms, self.request
        outcome.attempts += self.requests is not None
        kept = self._store.sites()
        pacing = self._pacing.with_updates(self._store.updates())
        longest_s = pacing.seconds(pacing.pace, outcome.attempts)
        self.sites = self.sites.wait(
            grid,
            kept,
            terms.min_sites,
            min(terms.wait_s, longest_s),
            terms.quorum_patience_s,
            self._listener.awaited,
        )
        membership = self.sites.membership
        outcome.deadline_s = pacing.seconds({*membership.nodes, *kept}, outcome.attempts)
        outcome.missing = sorted(set(membership.missing) - set(kept) - set(self._traffic.times))
        self.requests = Requests(
            grid,
            membership,
            request.round,
            request.content,
            deadline_s=outcome.deadline_s,
            wait_s=terms.wait_s,
            kept=kept,
            kind=request.kind,
            traffic=self._traffic,
            pacing=replace(pacing, simulated=membership.simulated),
            again=terms.again,
        )
        self._listener.asked([site for site in membership.nodes if site not in kept], kept)
        reach("sending", kind=request.kind, round=request.round)
        return self.requests.first()

    def replies(self, messages: Iterable[Message], exchange: Exchange) -> Iterator[Message]:
        """Send the messages of an attempt, and further ones that become due; yield the replies.

        The messages, each with a model, are not kept here once they are sent.
        """
        return exchange.replies(messages, self.outcome.deadline_s, self.requests)

    def take(self, replies: Iterable[Message]) -> list[Update]:
        """Check the replies as they arrive; return all stored ones, in site order.

        Raises
        ------
        EngineError
            If a reply reports that a simulation worker died.
        """
        requests, outcome = self._current(), self.outcome
        for reply in replies:
            if reply.metadata.message_type == MessageType.QUERY:
                requests.introduce(reply)
            else:
                self._take(reply)
            del reply  # free its model before the next one arrives
        self.sites = replace(
            self.sites,
            membership=requests.membership,
            absent=self.sites.absent | requests.gone(),
        )
        outcome.asked_again = self._traffic.asked_again()
        outcome.sent_bytes = self._traffic.sent_bytes.total()
        outcome.received_bytes = self._traffic.received_bytes.total()
        outcome.missing = sorted(set(outcome.missing) - set(requests.times))
        updates = self._store.updates()
        reach("folding", kind=self.request.kind, round=self.request.round)
        for site in sorted(requests.accepted - {update.site for update in updates}):
            outcome.drop(site, Cause.DAMAGED, "its update was damaged on the coordinator's disk")
        return updates

    def has_quorum(self, updates: list[Update]) -> bool:
        """Return whether there are enough stored replies."""
        return len(updates) >= self.terms.min_sites

    def repeat(self, updates: list[Update]) -> None:
        """Prepare for another attempt, or raise if there have been too many; see `gather`."""
        log(
            WARNING,
            "round %d: %d %s count, the quorum is %d; dropped: %s",
            self.request.round,
            len(updates),
            self.request.what,
            self.terms.min_sites,
            self.outcome.dropped or "none",
        )
        if self.outcome.attempts > self.terms.max_retries:
            raise too_few(
                f"round {self.request.round} has too few {self.request.what}",
                self.outcome,
                len(updates),
                self.terms.min_sites,
                self.sites.membership.nodes,
                Waited(self.sites.quorum_wait_s, self.terms.quorum_wait_key),
            )
        self._listener.repeated()

    def name_of(self, node: int) -> str:
        """Return the name of a node's site; ``node <id>`` if unknown."""
        return self._current().name_of(node)

    def _take(self, reply: Message) -> None:
        """Check one reply; store it if it is accepted."""
        requests, request = self._current(), self.request
        site = requests.site_of(reply)
        if site is None or site in requests.accepted:
            log(WARNING, "round %d: ignoring a second reply from %s", request.round, site)
            return
        # For a real site, the same error affects only that site.
        is_needed = self.terms.min_sites > 0
        if is_needed and self.sites.membership.simulated and engine_died(reply):
            raise EngineError(
                "a worker of the simulation died",
                where=f"round {request.round}, {site}",
                got=(reply.error.reason or "").splitlines()[0],
            )
        verdict = request.judge(reply, site)
        verdict = self._claims.check(verdict, requests.membership.num_examples, request.steps)
        self._traffic.receive(site, reply)
        if isinstance(verdict, Rejection):
            self.outcome.drop(site, verdict.cause, verdict.reason, verdict.detail)
            log(WARNING, "round %d: reply of %s rejected: %s", request.round, site, verdict.reason)
            requests.reject(site, verdict.is_failure)
        else:
            # An update that the site had finished, in part or whole, says nothing about its pace.
            seconds = 0.0 if is_shortened(reply.content) else requests.seconds_of(site)
            pace = seconds / self._pacing.work
            self._store.add(self._traffic.record_in(replace(verdict, pace=pace)))
            self.outcome.forgive(site)
            requests.accept(site)
            count = len(requests.accepted)
            reach("accepted", kind=request.kind, round=request.round, site=site, count=count)
        self._listener.answered(site, self.outcome.dropped.get(site))

    def _current(self) -> Requests:
        if self.requests is None:
            raise RuntimeError("no request was sent; call ask first")
        return self.requests
