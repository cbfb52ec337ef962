"""Errors: the message text, and that every field survives pickling between processes."""

import pickle

import pytest

from strategies.common.errors import (
    ConfigError,
    DataError,
    DeadlineError,
    DivergedError,
    EngineError,
    MdcError,
    ModelError,
    PlanError,
    QuorumError,
    RunError,
    SiteInputError,
)
from strategies.common.files import DamagedError, StorageError
from strategies.storage.lock import LockedError

KINDS = [
    ConfigError,
    DamagedError,
    DataError,
    DeadlineError,
    DivergedError,
    EngineError,
    LockedError,
    MdcError,
    ModelError,
    PlanError,
    QuorumError,
    RunError,
    StorageError,
]


def test_a_message_says_where_what_got_expected_and_what_to_do() -> None:
    error = MdcError(
        "is not a shape", where="lr-shape", got="zigzag", expected="cosine", hint="Choose one"
    )
    assert str(error) == "lr-shape: is not a shape (got 'zigzag', expected cosine). Choose one"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MdcError("it broke"), "it broke"),
        (MdcError("it broke", where="here"), "here: it broke"),
        (MdcError("it broke", got="x"), "it broke (got 'x')"),
        (MdcError("it broke", expected="y"), "it broke (expected y)"),
        (MdcError("it broke", hint="Mend it"), "it broke. Mend it"),
        (MdcError("it broke", got=0), "it broke (got 0)"),
        (MdcError("it broke", got=""), "it broke (got '')"),
        (MdcError("it broke", got=None), "it broke"),
    ],
)
def test_what_was_not_given_leaves_no_trace_in_the_message(error: MdcError, message: str) -> None:
    assert str(error) == message


def test_the_parts_can_be_read_one_by_one() -> None:
    error = RunError("what", where="where", got=3, expected="expected", hint="hint")
    parts = (error.what, error.where, error.got, error.expected, error.hint)
    assert parts == ("what", "where", 3, "expected", "hint")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_whole(kind: type[MdcError]) -> None:
    sent = kind("what", where="where", got=[1, "a"], expected="expected", hint="hint")
    sent.add_note("note")
    received = pickle.loads(pickle.dumps(sent))
    assert type(received) is kind
    assert str(received) == str(sent)
    assert vars(received) == vars(sent)


def test_sites_that_were_dropped_survive_it_too() -> None:
    sent = QuorumError("what", dropped={"site-1": "why"}, causes={"site-1": "data"})
    received = pickle.loads(pickle.dumps(sent))
    assert (received.dropped, received.causes) == ({"site-1": "why"}, {"site-1": "data"})


@pytest.mark.parametrize("kind", KINDS)
def test_one_clause_catches_every_error_of_the_project(kind: type[MdcError]) -> None:
    with pytest.raises(MdcError, match="what"):
        raise kind("what")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (DataError, 2),
        (ModelError, 2),
        (DivergedError, 2),
        (SiteInputError, 2),
        (QuorumError, 3),
        *((kind, 1) for kind in (PlanError, DeadlineError, RunError, EngineError)),
        *((kind, 1) for kind in (StorageError, DamagedError, LockedError)),
    ],
)
def test_what_can_be_mended_beforehand_exits_with_2_too_few_sites_with_3_the_rest_with_1(
    kind: type[MdcError], code: int
) -> None:
    assert kind("what").exit_code == code
