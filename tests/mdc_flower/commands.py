"""The `mdc` command in this process, and small runs of it."""

import hashlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mdc_flower.cli.main import app
from mdc_flower.common.references import USERS_FOLDER
from strategies.storage.run_directory import GLOBAL_MODEL

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def process_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work in a folder of the test's own, and give back what a command changes in its process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(USERS_FOLDER, "")
    handlers = {kind: signal.getsignal(kind) for kind in HANDLED}
    yield
    for kind, handler in handlers.items():
        signal.signal(kind, handler)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wait for nothing before a restart; return the list of the pauses that were to be made."""
    pauses: list[float] = []
    monkeypatch.setattr("mdc_flower.engines.supervisor.time", SimpleNamespace(sleep=pauses.append))
    return pauses


def mdc(*arguments: str | Path) -> Result:
    """Run the command; whatever it raises beside an exit status is a failure of the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def run_small(*arguments: str | Path) -> Result:
    """Run two sites of 60 examples, one epoch a round, in this process."""
    settings = [
        "model=mlp",
        "max-train-examples=120",
        "batch-size=8",
        "epochs=fixed",
        "local-epochs=1",
        "epoch-budget=0",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    return mdc("run", "--engine", "in-process", "--sites", "2", *options, *arguments)


def files_below(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {path: path.read_bytes() if path.is_file() else b"" for path in paths}


def model_sha256(run_dir: Path) -> str:
    """Return the digest of a run's global model file."""
    return hashlib.sha256((run_dir / GLOBAL_MODEL).read_bytes()).hexdigest()
