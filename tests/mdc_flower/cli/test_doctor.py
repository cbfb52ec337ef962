"""The doctor: what it looks at, and what it says when something is wrong."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from mdc_flower.cli.doctor import PACKAGES, run_checks
from mdc_flower.console.checks import Check
from mdc_flower.data.readers.builtin import BUILTIN

GIB = 1024**3


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have free space whatever the disk of this machine."""
    set_free(monkeypatch, 50 * GIB)


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")

    def disk_usage(path: Path) -> object:
        return usage._replace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def checks(dataset: str = "", data_root: str = "") -> dict[str, Check]:
    """Return the checks by name."""
    found = list(run_checks(dataset, data_root))
    by_name = {check.name: check for check in found}
    assert len(by_name) == len(found)
    return by_name


def test_every_check_passes_where_the_tests_run() -> None:
    assert {name for name, check in checks().items() if check.ok is False} == set()


def test_the_checks_say_what_they_found(cache: Path) -> None:
    found = checks()
    for name in PACKAGES:
        assert found[name] == Check(name, True, importlib.metadata.version(name))
    assert found["cache folder"] == Check("cache folder", True, f"{cache}, 50 GiB free")
    assert Path(found["command flwr"].detail).is_file()
    assert Path(found["command flower-superlink"].detail).is_file()
    assert found["data set digits"].detail == (
        "1442 training and 355 test examples of shape (1, 8, 8), 10 classes"
    )


def test_facts_are_neither_good_nor_bad() -> None:
    facts = {name for name, check in checks().items() if check.ok is None}
    assert facts == {"device", "cores", "other data sets"}


def test_the_data_sets_that_were_not_looked_at_are_named() -> None:
    assert checks()["other data sets"].detail.split(", ") == [n for n in BUILTIN if n != "digits"]


def test_only_the_data_set_that_is_asked_for_is_loaded() -> None:
    found = checks("digits")
    assert "other data sets" not in found
    assert found["data set digits"].ok


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        ("digit", "no such data set"),
        ("cifar10", "cannot be downloaded"),
        ("image-folder:/no/such/folder", "/no/such/folder/train: the folder is missing"),
        ("no_such_module:load", "cannot be imported"),
    ],
)
def test_a_data_set_that_cannot_be_had_fails_with_the_reason(
    dataset: str, named: str, tmp_path: Path
) -> None:
    check = checks(dataset, str(tmp_path))[f"data set {dataset}"]
    assert check.ok is False
    assert named in check.detail


def test_a_package_that_is_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = checks()
    assert all(found[name] == Check(name, False, "not installed") for name in PACKAGES)


def test_a_command_that_is_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def which(name: str, path: str) -> None:
        return None

    monkeypatch.setattr(shutil, "which", which)
    found = checks()
    for name in ("flwr", "flower-superlink", "flower-supernode"):
        assert found[f"command {name}"].ok is False
        assert "on PATH" in found[f"command {name}"].detail


def test_a_full_disk_fails_with_its_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    set_free(monkeypatch, GIB)
    check = checks()["cache folder"]
    assert check.ok is False
    assert check.detail == f"{cache}: only 1.0 GiB free, 2 are needed"


def test_a_cache_folder_that_cannot_be_made_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MDC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert checks()["cache folder"].ok is False
