"""What every test of the package needs: isolation from the machine, and a Flower identity."""

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.isolation import cache, offline, one_thread
from tests.mdc_flower.commands import no_pause, process_state

__all__ = ["cache", "identity", "no_pause", "offline", "one_thread", "process_state"]


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be somebody, or Flower makes no message; it keeps this in the process, without a reset."""
    monkeypatch.setattr(TaskIdentity, "_task_id", 11)
    monkeypatch.setattr(TaskIdentity, "_run_id", 22)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)  # the SuperLink's own id
