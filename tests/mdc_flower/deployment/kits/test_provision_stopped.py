"""Provisioning that is stopped: what it leaves, and how the next one goes on."""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.deployment.kits.kits import read_coordinator_kit, read_site_kit
from strategies.common.files import StorageError
from tests.mdc_flower.deployment.federations import (
    BERLIN,
    CONTRACT,
    HEAD,
    OSLO,
    TWO_SITES,
    Federation,
    assert_certificate_is_sound,
    changed,
    public_key,
)


class Stopped(BaseException):
    """The process is killed here."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process end at a step that writes to the disk, before the step's effect."""
    steps = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(self: Path, *arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                raise Stopped
            return real(self, *arguments, **options)

        return act

    for name in ("replace", "rename", "mkdir", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


def assert_nothing_looks_whole_that_is_not(federation: Federation) -> None:
    """Hold that what can be used or handed out is sound, whatever happened."""
    for site in ("berlin", "lisbon", "oslo"):
        if (federation.kits / site).exists():
            read_site_kit(federation.kits / site)
        archive = federation.kits / f"{site}.zip"
        if (federation.kits / f"{site}.zip.sha256").exists() and archive.exists():
            with zipfile.ZipFile(archive) as opened:
                assert (
                    opened.read(f"{site}/site.key")
                    == (federation.kits / site / "site.key").read_bytes()
                )
    if (federation.kits / "coordinator").exists():
        kit = read_coordinator_kit(federation.kits / "coordinator")
        assert "oslo" not in kit.sites or (federation.kits / "oslo" / "site.key").exists()


AFTER = HEAD.replace("coordinator.example", "lead.example") + CONTRACT + BERLIN + OSLO


def stopped_at_each_step(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]
) -> Iterator[int]:
    """Let an act be stopped at its first step, its second and so on, each time from the start."""
    start = federation.kits.with_name("start")
    if federation.kits.exists():
        federation.kits.rename(start)
    for step in count(1):
        shutil.rmtree(federation.kits, ignore_errors=True)
        if start.exists():
            shutil.copytree(start, federation.kits)
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            try:
                act()
            except Stopped:
                pass
            else:
                assert step > 20, "the act was hardly stopped at all"
                return
        yield step


def assert_settled(federation: Federation, sites: set[str]) -> None:
    """Hold that nothing is left to do, and that these sites are accepted and no others."""
    assert_nothing_looks_whole_that_is_not(federation)
    kit = read_coordinator_kit(federation.kits / "coordinator")
    assert kit.sites == {site: public_key(federation, site) for site in sites}
    assert not set(kit.sites.values()) & set(kit.revoked.values())
    assert not list(federation.kits.rglob(".*.tmp"))
    assert_certificate_is_sound(federation)
    before = federation.files()
    federation.provision()
    assert federation.files() == before


def test_stopped_anywhere_it_goes_on_where_it_stopped(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {public_key(federation, site) for site in ("berlin", "lisbon")}

    def add_change_renew_revoke_and_move() -> None:
        federation.provision(AFTER, renew=["berlin"], revoke=["lisbon"])

    for _ in stopped_at_each_step(federation, monkeypatch, add_change_renew_revoke_and_move):
        assert_nothing_looks_whole_that_is_not(federation)
        add_change_renew_revoke_and_move()
        assert_settled(federation, {"berlin", "oslo"})
        assert old <= set(read_coordinator_kit(federation.kits / "coordinator").revoked.values())
        assert not (federation.kits / "lisbon").exists()


def test_stopped_anywhere_it_leaves_nothing_behind_if_it_is_not_gone_on_with(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renew() -> None:
        federation.provision(renew=["berlin", "coordinator"])

    accepted = public_key(federation, "berlin")
    for _ in stopped_at_each_step(federation, monkeypatch, renew):
        federation.provision()
        assert_settled(federation, {"berlin", "lisbon"})
        kit = read_coordinator_kit(federation.kits / "coordinator")
        assert accepted in {kit.sites["berlin"], *kit.revoked.values()}


def test_a_first_provisioning_that_was_stopped_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path)
    for _ in stopped_at_each_step(federation, monkeypatch, lambda: federation.provision(TWO_SITES)):
        assert_nothing_looks_whole_that_is_not(federation)
        federation.provision()
        assert_settled(federation, {"berlin", "lisbon"})
        assert read_coordinator_kit(federation.kits / "coordinator").revoked == {}


def test_a_disk_that_refuses_is_reported_with_the_path(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = federation.files()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="No space left") as caught:
        federation.provision(TWO_SITES + OSLO)
    assert "oslo" in caught.value.where
    monkeypatch.undo()
    assert {path for path in changed(before, federation.files()) if "oslo" in path} == {
        ".oslo.tmp",
        ".oslo.tmp/state",
    }
    federation.provision()
    assert read_site_kit(federation.kits / "oslo").site == "oslo"
