"""How many cores there are to use, on each system."""

import os

import pytest

from mdc_flower.common.cores import usable_cores


def test_only_the_cores_that_this_process_may_use_are_counted() -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_a_system_that_cannot_reserve_cores_has_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert usable_cores() == os.cpu_count()
