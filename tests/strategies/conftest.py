"""What every test of the package needs: an identity, and a clock that nobody waits for."""

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.strategies.fakes import Clock, FakeGrid


@pytest.fixture(autouse=True)
def coordinator_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the coordinator of some run; Flower keeps this in the process and offers no reset."""
    monkeypatch.setattr(TaskIdentity, "_task_id", 11)
    monkeypatch.setattr(TaskIdentity, "_run_id", 22)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)  # the SuperLink's own id


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the coordinator's modules, and its grid, one clock that moves by itself."""
    clock = Clock()
    for module in (
        "asks",
        "attendance",
        "colearning",
        "exchange",
        "recalibration",
        "membership",
        "waiting",
    ):
        monkeypatch.setattr(f"strategies.{module}.time", clock)
    monkeypatch.setattr(FakeGrid, "clock", clock)
    return clock
