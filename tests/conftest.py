"""Fixtures for every test: child processes get default signals, and none outlives its test."""

import os
from collections.abc import Iterator

import pytest

from tests.processes import default_signals_for_children, ends_what_it_starts

REAL_PROCESSES = ("integration", "slow")
"""Marks of tests that start processes. No process may be left after such a test."""

LONGEST = {
    "test_deployment_doc.py", "test_federation.py", "test_readme.py", "test_real_sites.py",
    "test_wide_area.py",
}  # fmt: skip
"""Files whose tests take minutes."""


def pytest_configure(config: pytest.Config) -> None:
    """Prepare this process: pytest itself or one of its workers."""
    default_signals_for_children()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker waits for them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="module")
def no_process_outlives_its_module() -> Iterator[None]:
    with ends_what_it_starts():
        yield


@pytest.fixture(autouse=True)
def no_process_outlives_its_test(
    request: pytest.FixtureRequest, no_process_outlives_its_module: None
) -> Iterator[None]:
    """Check for leftover processes after each test that starts some; checking all is too slow."""
    if not any(request.node.get_closest_marker(mark) for mark in REAL_PROCESSES):
        yield
        return
    with ends_what_it_starts():
        yield


@pytest.fixture(autouse=True, scope="session")
def no_fsync() -> Iterator[None]:
    """Skip `fsync`. Only `test_files.py` tests what survives a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Share one cache folder: decoded data and partitions are made once, then only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_pictures() -> Iterator[None]:
    """Skip the picture at the end of each run in this process: drawing takes ten tiny runs' time.

    Tests of `mdc_flower.reports` draw, and so does every run in a separate process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdc_flower.reports.run_figures.draw_run", lambda *drawn: b"no picture")
        yield
