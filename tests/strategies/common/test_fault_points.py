"""Fault points: no effect without a hook; a hook is called with the point and its context."""

import pytest

from strategies.common.fault_points import HOOK_VARIABLE, reach

told: list[tuple[str, dict[str, str | int]]] = []


def hook(point: str, **where: str | int) -> None:
    told.append((point, where))
    if point == "the end":
        raise OSError("as the test wants it")


def test_without_a_hook_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOOK_VARIABLE, raising=False)
    told.clear()
    reach("the end", round=1)
    assert told == []


def test_the_hook_is_told_the_point_and_what_is_known_there_and_may_raise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(HOOK_VARIABLE, f"{__name__}:hook")
    told.clear()
    reach("sending", round=1, site="a")
    with pytest.raises(OSError, match="as the test wants it"):
        reach("the end")
    assert told == [("sending", {"round": 1, "site": "a"}), ("the end", {})]
