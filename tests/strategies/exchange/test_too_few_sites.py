"""The error for too few replies: exit status, sites, causes and hint."""

import pytest
from flwr.app import Error, Message

from strategies.common.errors import ConfigError, DataError, ModelError, PlanError, SiteInputError
from strategies.exchange.causes import Cause, error_code
from strategies.exchange.too_few_sites import too_few
from strategies.method.recipes import fedavg
from strategies.storage.round_record import RoundRecord
from tests.strategies.fakes import NODE_IDS, Fault, grid_of, silent
from tests.strategies.test_round_loop import Watcher, run, stopped, three_sites

A, B, C, _ = NODE_IDS


def fails_with(error: Exception) -> Fault:
    """Answer like a site that raised this error."""

    def fault(request: Message, reply: Message) -> Message:
        said = Error(error_code(error), f"{type(error).__name__}: {error}")
        return Message(said, reply_to=request)

    return fault


def record(**causes: Cause) -> RoundRecord:
    return RoundRecord(4, {}, dropped=dict.fromkeys(causes, "why"), causes=dict(causes))


@pytest.mark.parametrize(
    "error",
    [DataError("no"), ModelError("no"), ConfigError("no"), PlanError("no")],
    ids=lambda error: type(error).__name__,
)
def test_sites_that_cannot_use_their_input_end_the_run_with_status_2(error: Exception) -> None:
    sites = three_sites(b={1: fails_with(error)}, c={1: fails_with(error)})
    watcher = Watcher()
    with pytest.raises(SiteInputError) as caught:
        run(grid_of(*sites), fedavg(2, 1, 0.1), watcher=watcher, min_sites=2, max_round_retries=0)
    kind = type(error).__name__.removesuffix("Error").lower()
    assert caught.value.exit_code == 2
    assert f"the {kind} at b, c cannot be used" in str(caught.value)
    assert f"b: the site failed: {type(error).__name__}: no" in str(caught.value)
    assert [failed.round for failed in watcher.failed] == [1]


def test_of_sites_that_answered_at_once_it_is_not_said_that_they_were_waited_for() -> None:
    sites = three_sites(b={1: fails_with(RuntimeError("x"))}, c={1: fails_with(RuntimeError("x"))})
    _, error = stopped(grid_of(*sites), fedavg(1, 1, 0.1), min_sites=2, max_round_retries=0)
    assert error.exit_code == 3
    assert error.hint == "b: the site failed: RuntimeError: x; c: the site failed: RuntimeError: x"


def test_only_of_a_site_that_did_not_answer_the_deadline_is_spoken_of() -> None:
    sites = three_sites(b={1: fails_with(RuntimeError("x"))}, c={1: silent})
    _, error = stopped(grid_of(*sites), fedavg(1, 1, 0.1), min_sites=2, max_round_retries=0)
    assert error.hint == (
        "b: the site failed: RuntimeError: x; c: no reply within 10 s. "
        "If c had too little time, set round-deadline-s"
    )


def test_a_site_that_went_offline_had_no_too_little_time() -> None:
    error = too_few("round 4", record(b=Cause.NO_REPLY), 1, 2, online={"a"})
    assert "round-deadline-s" not in str(error)


def test_where_the_quorum_lacks_for_other_sites_too_it_is_a_matter_of_those() -> None:
    causes = {"b": Cause.DATA, "c": Cause.NO_REPLY}
    assert too_few("round 4", record(**causes), 1, 2, online="abc").exit_code == 2
    assert too_few("round 4", record(**causes), 1, 3, online="abc").exit_code == 3


def test_each_kind_of_input_is_named_with_its_sites() -> None:
    causes = {"c": Cause.DATA, "b": Cause.MODEL, "a": Cause.DATA}
    error = too_few("round 4 has too few updates", record(**causes), 0, 2, online="abc")
    assert (
        "round 4 has too few updates, after 1 attempt: the data at a, c and the model at b "
        "cannot be used"
    ) in str(error)
