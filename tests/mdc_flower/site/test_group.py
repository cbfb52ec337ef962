"""How the processes of a site agree on what to do, and notice that one cannot go on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from mdc_flower.site import group as module
from mdc_flower.site.group import BrokenGroupError, Group
from mdc_flower.training.runtime import Runtime
from strategies.common.errors import DeadlineError, EngineError


class Two(Runtime):
    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AFTER_ERROR", timedelta(seconds=0.5))


@contextmanager
def pair(work: Any) -> Iterator[tuple[Group, list[Any]]]:
    """Yield rank 0's group; rank 1 does ``work`` for each call, and ends at the latest after."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    lead, other = Group(Two(0), store, 2), Group(Two(1), store, 2)
    seen: list[Any] = []

    def take_part(ranks: Runtime, about: Any) -> None:
        seen.append(about)
        work(about)

    def follow() -> None:
        try:
            other.follow(take_part)
        except BrokenGroupError as error:
            seen.append(error)

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        yield lead, seen
    finally:
        lead.end()
        follower.join(20)
        assert not follower.is_alive()


def test_all_do_what_the_first_says() -> None:
    with pair(lambda about: None) as (lead, seen):
        for number in range(3):
            with lead.call({"method": "fit", "number": number}):
                pass
    assert [about["number"] for about in seen] == [0, 1, 2]
    assert not lead.is_broken


def test_if_all_fail_alike_they_go_on() -> None:
    def late(about: Any) -> None:
        raise DeadlineError("too late")

    with pair(late) as (lead, seen):
        for _ in range(2):
            with pytest.raises(DeadlineError), lead.call({"method": "fit"}):
                raise DeadlineError("too late")
    assert len(seen) == 2
    assert not lead.is_broken


def test_an_error_of_another_rank_fails_the_call() -> None:
    def fail(about: Any) -> None:
        raise ValueError("a value of the data")

    with (
        pair(fail) as (lead, _),
        pytest.raises(EngineError, match="rank 1 of this site failed") as caught,
        lead.call({"method": "fit"}),
    ):
        pass
    assert caught.value.got == "ValueError", "the text may hold data"
    assert not lead.is_broken


def test_a_first_rank_that_fails_alone_breaks_the_group() -> None:
    goes_on = threading.Event()
    with pair(lambda about: goes_on.wait(20)) as (lead, _):
        with pytest.raises(KeyError), lead.call({"method": "fit"}):
            raise KeyError("only here")
        assert lead.is_broken
        goes_on.set()


def test_another_rank_that_fails_alone_ends() -> None:
    def fail(about: Any) -> None:
        raise MemoryError

    with pair(fail) as (lead, seen):
        lead._begin({"method": "fit"})  # rank 0 now waits in the middle of the call
        for _ in range(400):
            if len(seen) == 2:
                break
            threading.Event().wait(0.05)
    assert isinstance(seen[1], BrokenGroupError)
