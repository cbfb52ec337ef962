"""What every test of the package needs: an identity, without which Flower makes no message."""

import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(autouse=True)
def coordinator_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the coordinator of some run; Flower keeps this in the process and offers no reset."""
    monkeypatch.setattr(TaskIdentity, "_task_id", 11)
    monkeypatch.setattr(TaskIdentity, "_run_id", 22)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)  # the SuperLink's own id
