"""Stored updates: on disk before they count, restored after a restart, never if damaged."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strategies.aggregation.averaging import Update
from strategies.common.files import StorageError, seal
from strategies.exchange.update_store import MemoryUpdates, UpdateStore
from strategies.storage.model_files import model_parts
from strategies.storage.updates import StoredUpdates

PLAN, OTHER = "0123456789abcdef", "fedcba9876543210"
METRICS = {"num-examples": 40, "train-loss": 0.1 + 0.2, "train-seconds": 2.0}


def update(site: str, value: float = 1 / 3) -> Update:
    arrays: dict[str, Any] = {
        "w": np.full((2, 3), value, np.float32),
        "scale": np.array(value, np.float16),
        "bn.num_batches_tracked": np.array(12),
    }
    return Update(site, 40, arrays, METRICS, pace=0.5, sent_bytes=700, received_bytes=800)


def plain(update: Update) -> tuple[Any, ...]:
    """Return an update in a form that compares equal only if every bit is equal."""
    arrays = {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in update.arrays.items()}
    numbers = update.num_examples, update.pace, update.sent_bytes, update.received_bytes
    return update.site, numbers, dict(update.metrics), arrays


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def filled(folder: Path, *sites: str, archive: Path | None = None) -> StoredUpdates:
    stored = StoredUpdates(folder, archive)
    stored.open(PLAN)
    for site in sites:
        stored.add(update(site))
    return stored


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> UpdateStore:
    return MemoryUpdates() if request.param == "memory" else StoredUpdates(tmp_path / "open")


def test_updates_come_back_as_they_were_in_site_order(store: UpdateStore) -> None:
    store.open(PLAN)
    assert store.updates() == []
    for site in ("site-2", "site-10", "a"):
        store.add(update(site))
    assert store.sites() == ["a", "site-10", "site-2"]
    assert [plain(one) for one in store.updates()] == [
        plain(update(site)) for site in ("a", "site-10", "site-2")
    ]


def test_a_plan_that_is_opened_again_goes_on_and_another_begins_anew(store: UpdateStore) -> None:
    store.open(PLAN)
    store.add(update("a"))
    store.open(PLAN)
    assert store.sites() == ["a"]
    store.open(OTHER)
    assert store.sites() == []
    store.open(PLAN)
    assert store.sites() == []


def test_a_closed_round_has_no_updates(store: UpdateStore) -> None:
    store.open(PLAN)
    store.add(update("a"))
    store.close(1)
    assert store.sites() == []
    assert store.updates() == []
    store.open(PLAN)
    assert store.sites() == []


def test_updates_are_there_again_for_another_process_that_goes_on_with_the_plan(
    tmp_path: Path,
) -> None:
    filled(tmp_path, "b", "a")
    again = StoredUpdates(tmp_path)
    again.open(PLAN)
    assert again.sites() == ["a", "b"]
    assert [plain(one) for one in again.updates()] == [plain(update("a")), plain(update("b"))]


def test_an_update_that_an_earlier_version_kept_counts_without_its_bytes(tmp_path: Path) -> None:
    old = update("a")
    about = {"site": "a", "num-examples": 40, "metrics": METRICS, "pace": 0.5}
    seal(tmp_path, f"{PLAN}.a", ".safetensors", model_parts(old.arrays, about))
    stored = StoredUpdates(tmp_path)
    stored.open(PLAN)
    (one,) = stored.updates()
    assert plain(one) == plain(replace(old, sent_bytes=0, received_bytes=0))


def test_the_updates_of_another_plan_and_what_was_half_written_are_removed(tmp_path: Path) -> None:
    filled(tmp_path, "a", "b")
    (tmp_path / f".{PLAN}.safetensors.17.tmp").write_bytes(b"half")
    again = StoredUpdates(tmp_path)
    again.open(OTHER)
    assert again.sites() == []
    assert files(tmp_path) == []


def test_a_sites_name_may_be_any_text(tmp_path: Path) -> None:
    sites = ["../up", "a/b", "ß.site", "x" * 300, "."]
    filled(tmp_path, *sites)
    again = StoredUpdates(tmp_path)
    again.open(PLAN)
    assert again.sites() == sorted(sites)
    assert len(files(tmp_path)) == len(sites)


def test_a_sites_newer_update_takes_the_place_of_its_older_one(store: UpdateStore) -> None:
    store.open(PLAN)
    store.add(update("a", 1.0))
    store.add(update("a", 2.0))
    (only,) = store.updates()
    assert plain(only) == plain(update("a", 2.0))


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
@pytest.mark.parametrize("reopened", [True, False])
def test_a_damaged_update_is_set_aside_by_name_and_the_others_stand(
    tmp_path: Path, damage: str, reopened: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stored = filled(tmp_path, "a")
    (path,) = tmp_path.iterdir()
    stored.add(update("b"))
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"cut": content[:-1], "changed": flipped, "emptied": b""}[damage])
    with caplog.at_level(logging.WARNING, logger="flwr"):
        if reopened:
            stored = StoredUpdates(tmp_path)
            stored.open(PLAN)
        assert [one.site for one in stored.updates()] == ["b"]
    assert stored.sites() == ["b"]
    assert str(path) in caplog.text
    assert f"{path.name}.damaged" in files(tmp_path)
    stored.add(update("a"))
    assert [one.site for one in stored.updates()] == ["a", "b"]


def test_a_kept_update_is_read_an_array_at_a_time(tmp_path: Path) -> None:
    (one,) = filled(tmp_path, "a").updates()
    assert not isinstance(one.arrays, dict)
    assert one.arrays["w"] is not one.arrays["w"]


def test_an_update_that_cannot_be_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(point: str, **where: str) -> None:
        raise OSError(28, "No space left on device")

    stored = filled(tmp_path, "a")
    before = files(tmp_path)
    monkeypatch.setattr("strategies.common.files.reach", full)
    with pytest.raises(StorageError, match="No space left"):
        stored.add(update("b"))
    assert stored.sites() == ["a"]
    assert files(tmp_path) == before


def test_without_an_archive_a_closed_round_leaves_nothing(tmp_path: Path) -> None:
    filled(tmp_path, "a", "b").close(1)
    assert files(tmp_path) == []


def test_an_archive_keeps_the_updates_of_each_round_in_a_folder_of_its_own(
    tmp_path: Path,
) -> None:
    stored = filled(tmp_path / "open", "a", "b", archive=tmp_path / "kept")
    first = files(tmp_path / "open")
    stored.close(1)
    stored.open(OTHER)
    stored.add(update("a"))
    stored.close(12)
    assert files(tmp_path / "open") == []
    assert files(tmp_path / "kept") == ["round-00001", "round-00012"]
    assert files(tmp_path / "kept" / "round-00001") == first
    assert len(files(tmp_path / "kept" / "round-00012")) == 1
