"""Fixtures for all tests of the package: a run identity, and a simulated clock."""

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.strategies.fakes import Clock, FakeGrid


@pytest.fixture(autouse=True)
def coordinator_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the identity of the coordinator; Flower keeps it per process and cannot reset it."""
    monkeypatch.setattr(TaskIdentity, "_task_id", 11)
    monkeypatch.setattr(TaskIdentity, "_run_id", 22)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)  # the SuperLink's own id


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the time module in the coordinator's modules and the grid by a simulated clock."""
    clock = Clock()
    for module in (
        "exchange.attendance",
        "exchange.membership",
        "exchange.requests",
        "exchange.transport",
        "exchange.waiting",
        "recalibration",
        "round_loop",
    ):
        monkeypatch.setattr(f"strategies.{module}.time", clock)
    monkeypatch.setattr(FakeGrid, "clock", clock)
    return clock
