"""What holds for every test: children get default signals, and no process outlives its test."""

import os
from collections.abc import Iterator

import pytest

from tests.processes import default_signals_for_children, ends_what_it_starts

REAL_PROCESSES = ("integration", "slow")
"""Tests with these marks start processes; after each of them, none may be left."""


def pytest_configure(config: pytest.Config) -> None:
    """Prepare this process, be it pytest itself or one of its workers."""
    default_signals_for_children()


@pytest.fixture(autouse=True, scope="module")
def no_process_outlives_its_module() -> Iterator[None]:
    with ends_what_it_starts():
        yield


@pytest.fixture(autouse=True)
def no_process_outlives_its_test(
    request: pytest.FixtureRequest, no_process_outlives_its_module: None
) -> Iterator[None]:
    """Look after each test that starts processes; a look after each of the others is too slow."""
    if not any(request.node.get_closest_marker(mark) for mark in REAL_PROCESSES):
        yield
        return
    with ends_what_it_starts():
        yield


@pytest.fixture(autouse=True, scope="session")
def no_fsync() -> Iterator[None]:
    """Do not wait for the disk: only `test_files.py` is about what a power cut leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded data and partitions in one folder; they are made once and only read after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_pictures() -> Iterator[None]:
    """Do not draw at the end of each run in this process: it takes ten times as long as a tiny run.

    Tests of `mdc_flower.reports` draw, and so does every run in a process of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdc_flower.reports.run_figures.draw_run", lambda *drawn: b"no picture")
        yield
