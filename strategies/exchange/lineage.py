"""Lineage: with which state of an earlier round a site begins a round.

A site may keep state from round to round in files, such as that of its optimizer. A state counts
only if the coordinator names it: each train message says in which round the site's update last
counted. So the state of a round whose update did not count is never used, and a resumed run begins
every round with the same states. The states are not part of the plan: a round that is repeated
after a site has lost its state keeps its plan id.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ConfigRecord, RecordDict

from strategies.aggregation.averaging import Update
from strategies.common.errors import PlanError
from strategies.exchange.causes import Cause
from strategies.exchange.gate import Rejection
from strategies.exchange.records import records_of

STATE, RUN, STATE_FROM = "state", "run", "state-from"

_RUN = re.compile(r"[0-9]{1,20}")
_STATE_FROM = re.compile(r"([0-9a-f]{16})?")


@dataclass(frozen=True)
class Lineage:
    """Where the state comes from with which a site begins a round.

    Attributes
    ----------
    run : str
        The run's number, which stays the same when the run is resumed.
    state_from : str
        Plan id of the last round in which the site's update counted; empty to begin anew.
    """

    run: str
    state_from: str = ""

    def put_in(self, content: RecordDict) -> RecordDict:
        """Add the lineage to the content of a train message, and return it."""
        content[STATE] = ConfigRecord({RUN: self.run, STATE_FROM: self.state_from})
        return content


def lineage_of(content: RecordDict) -> Lineage:
    """Return the lineage in a train message.

    Raises
    ------
    PlanError
        If it is missing or not valid. Its parts become parts of file names.
    """
    record = records_of(content, ConfigRecord).get(STATE, ConfigRecord())
    run, state_from = record.get(RUN), record.get(STATE_FROM)
    for key, value, form in ((RUN, run, _RUN), (STATE_FROM, state_from, _STATE_FROM)):
        if not (isinstance(value, str) and form.fullmatch(value)):
            raise PlanError(
                "the message does not say with which state the round begins",
                where=f"{STATE}, {key}",
                got=value,
                hint="Coordinator and site must run the same version of mdc-flower",
            )
    return Lineage(str(run), str(state_from))


@dataclass
class Lineages:
    """The lineages of all sites in one round.

    Attributes
    ----------
    run : str
        The run's number; empty if the sites keep no state.
    counted : Mapping[str, str]
        Plan id of the last round in which each site's update counted, by site.
    anew : set of str
        Sites that have lost this state, and begin the round without it.
    """

    run: str
    counted: Mapping[str, str]
    anew: set[str] = field(default_factory=set)

    def put_in(self, content: RecordDict, site: str) -> RecordDict:
        """Add a site's lineage to the content of its message, if sites keep state."""
        return Lineage(self.run, self._state_from(site)).put_in(content) if self.run else content

    def judged(self, verdict: Update | Rejection) -> Update | Rejection:
        """Return the verdict about a site's reply, with what it means for the site's state.

        A site that has lost the state that the coordinator named begins anew. Its answer does not
        count as one of its failures, but a site can lose a state only once.
        """
        site = verdict.site
        if isinstance(verdict, Update):
            return replace(verdict, began_anew=site in self.anew)
        if verdict.cause is Cause.STATE_MISSING and self._state_from(site):
            self.anew.add(site)
            return replace(verdict, is_failure=False)
        return verdict

    def _state_from(self, site: str) -> str:
        return "" if not self.run or site in self.anew else self.counted.get(site, "")
