"""Arrays made once on a machine: by one of several processes, whole or not at all."""

import multiprocessing
import os
import pwd
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from mdc_flower.data.cache import cache_dir, cached_arrays, machine_lock
from strategies.common.errors import ConfigError

pytestmark = pytest.mark.usefixtures("cache")

SPAWN = multiprocessing.get_context("spawn")


def arrays() -> dict[str, NDArray[np.generic]]:
    return {
        "inputs": np.arange(6, dtype=np.uint8).reshape(3, 2),
        "labels": np.array([0, 1, 0]),
        "names": np.array(["no", "yes"]),
    }


def never() -> NoReturn:
    raise AssertionError("it was there already")


def test_the_folder_is_the_one_that_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == cache
    monkeypatch.setenv("MDC_CACHE_DIR", str(cache / "new" / "er"))
    assert cache_dir() == cache / "new" / "er"
    assert cache_dir().is_dir()


def test_without_a_name_it_is_under_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MDC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "mdc-flower"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "mdc-flower"


def test_a_user_without_a_home_needs_one_only_where_no_folder_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose user is not in its list of users."""

    def unknown(*arguments: object) -> NoReturn:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_dir() == cache
    monkeypatch.delenv("MDC_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ConfigError, match=r"no home folder .*Set MDC_CACHE_DIR to a folder"):
        cache_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be created: Not a directory.*Set MDC_CACHE_DIR"):
        cache_dir()


def test_arrays_come_back_with_names_shapes_dtypes_and_values() -> None:
    made = cached_arrays("key", arrays)
    assert set(made) == {"inputs", "labels", "names"}
    for name, array in arrays().items():
        assert made[name].dtype == array.dtype
        assert np.array_equal(made[name], array)


def test_arrays_are_made_once_and_mapped_from_then_on() -> None:
    cached_arrays("key", arrays)
    again = cached_arrays("key", never)
    assert isinstance(again["inputs"], np.memmap)
    assert not again["inputs"].flags.writeable


def test_another_key_is_made_anew() -> None:
    cached_arrays("key", arrays)
    other = cached_arrays("other", lambda: {"labels": np.array([7])})
    assert list(other) == ["labels"]
    assert other["labels"].tolist() == [7]


def left_behind(cache: Path) -> list[str]:
    """Return what is in the cache, beside locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_what_fails_while_it_is_made_leaves_nothing_behind(cache: Path) -> None:
    def fail() -> NoReturn:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        cached_arrays("key", fail)
    assert left_behind(cache) == []
    assert len(cached_arrays("key", arrays)) == 3


def test_what_fails_while_it_is_stored_leaves_nothing_behind(cache: Path) -> None:
    # Objects could be stored only as pickles; the first array is on disk by then.
    with pytest.raises(ValueError, match="allow_pickle"):
        cached_arrays("key", lambda: {**arrays(), "objects": np.array([object()])})
    assert left_behind(cache) == []
    assert len(cached_arrays("key", arrays)) == 3


def test_what_was_used_longest_ago_is_removed_when_the_rest_would_not_fit(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def megabyte() -> dict[str, NDArray[np.generic]]:
        return {"inputs": np.zeros(1_000_000, dtype=np.uint8)}

    monkeypatch.setenv("MDC_CACHE_GB", "0.0025")  # two of them
    (cache / "torchvision").mkdir()
    (cache / "torchvision" / "downloaded").write_bytes(bytes(3_000_000))
    (cache / ".killed.x").mkdir()
    (cache / ".killed.x" / "inputs.npy").write_bytes(bytes(1_000_000))
    os.utime(cache / ".killed.x", (0, 0))
    mapped = {}
    for hour, name in enumerate(["a", "b"]):
        mapped[name] = cached_arrays(name, megabyte)["inputs"]
        os.utime(cache / name, (hour, hour))
    cached_arrays("a", never)  # used again: b is the older one now
    cached_arrays("c", megabyte)
    assert left_behind(cache) == ["a", "c", "torchvision"]
    assert not mapped["b"].any(), "who has it mapped keeps it"
    monkeypatch.setenv("MDC_CACHE_GB", "0")
    cached_arrays("d", megabyte)
    assert left_behind(cache) == ["d", "torchvision"]


@pytest.mark.parametrize("size", ["-1", "nan", "much"])
def test_a_bound_that_is_no_size(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_CACHE_GB", size)
    with pytest.raises(ConfigError, match="MDC_CACHE_GB: not a size in GB"):
        cached_arrays("key", arrays)


def test_a_folder_that_was_emptied_is_made_anew(cache: Path) -> None:
    cached_arrays("key", arrays)
    for path in (cache / "key").iterdir():
        path.unlink()
    assert len(cached_arrays("key", arrays)) == 3


def make_slowly(folder: str, barrier: Barrier, results: Any) -> None:
    """Make the arrays, taking long enough for another process to come in between."""

    def make() -> dict[str, NDArray[np.generic]]:
        Path(folder, f"made-by-{os.getpid()}").touch()
        time.sleep(0.5)
        return arrays()

    barrier.wait()
    made = cached_arrays("key", make)
    results.put({name: array.tolist() for name, array in made.items()})


def test_of_two_processes_that_come_together_one_makes_and_both_have(
    cache: Path, tmp_path: Path
) -> None:
    barrier, results = SPAWN.Barrier(2), SPAWN.Queue()
    both = [
        SPAWN.Process(target=make_slowly, args=(str(tmp_path), barrier, results)) for _ in range(2)
    ]
    for process in both:
        process.start()
    got = [results.get(timeout=60) for _ in both]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(list(tmp_path.glob("made-by-*"))) == 1
    assert got == [{name: array.tolist() for name, array in arrays().items()}] * 2
    assert left_behind(cache) == ["key"]


def die_while_storing() -> None:
    """End the process, as a kill does, when the first array is on disk and the rest is not."""

    class Deadly(dict[str, NDArray[np.generic]]):
        def items(self) -> Any:
            yield from list(super().items())[:1]
            os._exit(9)

    cached_arrays("key", lambda: Deadly(arrays()))


def test_after_a_process_was_killed_the_next_one_makes_all_of_it() -> None:
    process = SPAWN.Process(target=die_while_storing)
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert set(cached_arrays("key", arrays)) == {"inputs", "labels", "names"}


def test_a_lock_of_a_name_is_one_lock() -> None:
    import filelock

    with machine_lock("name"), machine_lock("other"):
        other = machine_lock("name")
        # Within a process a lock of the same file is another object, and must wait.
        with pytest.raises(filelock.Timeout):
            other.acquire(timeout=0)
    with other.acquire(timeout=0):
        assert other.is_locked
