"""Which state a site is told to begin a round with, and what it means if it has lost it."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from strategies.aggregation.averaging import Update
from strategies.common.errors import PlanError
from strategies.exchange.causes import Cause
from strategies.exchange.gate import Rejection
from strategies.exchange.lineage import RUN, STATE, STATE_FROM, Lineage, Lineages, lineage_of

FIRST, SECOND = "0123456789abcdef", "fedcba9876543210"
COUNTED = {"north": FIRST, "south": SECOND}


def lost(site: str) -> Rejection:
    return Rejection(site, Cause.STATE_MISSING, "it is gone")


def told(lineages: Lineages, site: str) -> Lineage:
    return lineage_of(lineages.put_in(RecordDict(), site))


def test_each_site_is_told_its_own_last_round_that_counted() -> None:
    lineages = Lineages("17", COUNTED)
    assert told(lineages, "north") == Lineage("17", FIRST)
    assert told(lineages, "south") == Lineage("17", SECOND)
    assert told(lineages, "new") == Lineage("17", "")


def test_sites_that_keep_nothing_are_told_nothing() -> None:
    assert Lineages("", COUNTED).put_in(RecordDict(), "north") == RecordDict()


def test_a_site_that_has_lost_its_state_begins_anew_and_this_is_no_failure_of_it() -> None:
    lineages = Lineages("17", COUNTED)
    verdict = lineages.judged(lost("north"))
    assert isinstance(verdict, Rejection)
    assert not verdict.is_failure
    assert told(lineages, "north") == Lineage("17", "")
    assert told(lineages, "south") == Lineage("17", SECOND)
    updates = [lineages.judged(Update(site, 1, {"w": np.zeros(1)}, {})) for site in COUNTED]
    assert [isinstance(one, Update) and one.began_anew for one in updates] == [True, False]


@pytest.mark.parametrize("lineages", [Lineages("17", COUNTED), Lineages("", COUNTED)], ids=repr)
def test_a_site_that_had_no_state_to_lose_has_failed(lineages: Lineages) -> None:
    assert lineages.judged(lost("new")) == lost("new")
    lineages.judged(lost("north"))
    assert lineages.judged(lost("north")) == lost("north")


def test_another_error_is_a_failure_and_no_loss() -> None:
    lineages = Lineages("17", COUNTED)
    failed = Rejection("north", Cause.SITE_FAILED, "out of memory")
    assert lineages.judged(failed) == failed
    assert told(lineages, "north") == Lineage("17", FIRST)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {RUN: "17"},
        {RUN: "", STATE_FROM: FIRST},
        {RUN: "../17", STATE_FROM: FIRST},
        {RUN: "17", STATE_FROM: "../../etc/passwd"},
        {RUN: "17", STATE_FROM: FIRST + "\n"},
        {RUN: 17, STATE_FROM: FIRST},
    ],
    ids=str,
)
def test_what_becomes_part_of_a_file_name_is_checked(fields: Any) -> None:
    with pytest.raises(PlanError, match="with which state the round begins"):
        lineage_of(RecordDict({STATE: ConfigRecord(fields)}))
