"""What every test of the package needs: a cache of its own, no network, a Flower identity."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

from mdc_flower.data import load_dataset
from mdc_flower.task import load_task


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Compute on one thread: what is computed here is so small that more of them only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep derived files in a folder of the test's own, and forget what was loaded before."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MDC_CACHE_DIR", str(folder))
    load_dataset.cache_clear()
    load_task.cache_clear()
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every download at once, as a machine without a network does."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be somebody, or Flower makes no message; it keeps this in the process, without a reset."""
    monkeypatch.setattr(TaskIdentity, "_task_id", 11)
    monkeypatch.setattr(TaskIdentity, "_run_id", 22)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)  # the SuperLink's own id
