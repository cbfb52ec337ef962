"""Fixtures that isolate a test: its own cache, one thread, and no network."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import pytest
import torch

from mdc_flower.data import load_dataset
from mdc_flower.jobs.task import load_site_task, load_task


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Compute on one thread: these jobs are too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the test its own cache folder, and clear the caches in memory."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("MDC_CACHE_DIR", str(folder))
    _forget()
    yield folder
    _forget()


def _forget() -> None:
    load_dataset.cache_clear()
    load_task.cache_clear()
    load_site_task.cache_clear()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every download fail at once, as on a machine without a network."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
