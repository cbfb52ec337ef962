"""Starting the ClientApps of a site as forks of a process that has imported everything."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus
from flwr.supernode import start_client_internal as flower

from mdc_flower.deployment.site import superexec
from mdc_flower.deployment.site.superexec import ForkingExecutor
from mdc_flower.deployment.site.supernode import start_apps_quickly

DEADLINE_S = 300.0


def report(token: str, parent_pid: int, **others: Any) -> None:
    """Stand in for Flower's function: write what this process is, then wait to be ended."""
    about = {
        "pid": os.getpid(),
        "parents": [process.pid for process in psutil.Process().parents()],
        "parent-pid": parent_pid,
        "given": sorted(others),
        "has-app": "mdc_flower.client_app" in sys.modules,
    }
    path = Path(token)
    path.with_suffix(".part").write_text(json.dumps(about))
    path.with_suffix(".part").rename(path)
    time.sleep(DEADLINE_S)


def spec(token: str, kind: TaskType = TaskType.CLIENT_APP) -> ExecutionSpec:
    return ExecutionSpec(
        task_type=kind,
        runtime_api_address="127.0.0.1:1",
        token=token,
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=os.getpid(),
        suppress_output=False,
        task_id=1,
    )


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkingExecutor]:
    monkeypatch.setattr(superexec, "run_to_the_end", report)
    # A process has one fork server. One that an earlier test started has not imported the same.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    executor = ForkingExecutor()
    yield executor
    executor.close()
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def reported(path: Path) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    about: dict[str, Any] = json.loads(path.read_text())
    return about


def test_each_message_gets_a_new_process_that_has_imported_the_app(
    executor: ForkingExecutor, tmp_path: Path
) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    for path in paths:
        assert executor.launch(spec(str(path))).status == LaunchResultStatus.ACCEPTED
    first, second = (reported(path) for path in paths)
    assert first["pid"] != second["pid"]
    # Both are forks of one process, which this process started.
    assert first["parents"][0] == second["parents"][0] != os.getpid()
    assert first["parents"][1] == os.getpid() == first["parent-pid"]
    assert first["has-app"]
    assert first["given"] == [
        "certificates", "insecure", "runtime_api_address", "runtime_dependency_install"
    ]  # fmt: skip


def test_processes_that_still_run_end_with_the_superexec(
    executor: ForkingExecutor, tmp_path: Path
) -> None:
    executor.launch(spec(str(tmp_path / "about")))
    about = reported(tmp_path / "about")
    executor.reconcile()
    assert psutil.pid_exists(about["pid"])
    executor.close()
    deadline = time.monotonic() + DEADLINE_S
    while psutil.pid_exists(about["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    executor.reconcile()
    assert not executor._processes


def test_a_fork_does_what_a_process_does_at_its_end() -> None:
    code = (
        "import atexit, os; from mdc_flower.deployment.site import superexec; "
        "superexec.run_clientapp = lambda **_: atexit.register(os.write, 1, b'ended'); "
        "superexec.run_to_the_end(); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=DEADLINE_S
    )
    assert done.stdout == b"ended"


def test_the_supernode_starts_our_superexec_with_flowers_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = dict(vars(flower))
    path = tmp_path / "argv"
    code = f"import sys; open({str(path)!r}, 'w').write(' '.join(sys.argv[1:]))"
    monkeypatch.setattr(superexec, "COMMAND", (sys.executable, "-c", code))
    try:
        start_apps_quickly()
        process = vars(flower)["subprocess"].Popen(
            ["flower-superexec", "--insecure", "--parent-pid", "1"]
        )
    finally:
        vars(flower).update(before)
    assert process.wait(DEADLINE_S) == 0
    assert path.read_text() == "--insecure --parent-pid 1"


def test_a_flower_that_starts_apps_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(flower, "subprocess")
    with pytest.raises(AttributeError):
        start_apps_quickly()
    monkeypatch.setattr(superexec, "flower", SimpleNamespace())
    with pytest.raises(AttributeError):
        superexec.main()


@pytest.mark.parametrize("module", ["site.supernode", "site.superexec", "coordinator.superlink"])
def test_what_only_passes_messages_on_does_not_import_pytorch(module: str) -> None:
    code = f"import sys, mdc_flower.deployment.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)
