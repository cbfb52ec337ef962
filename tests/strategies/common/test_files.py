"""Files: atomic writes, and sealed files whose damage is detected."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from strategies.common.files import (
    DIGEST_CHARS,
    DamagedError,
    StorageError,
    append_line,
    check_seal,
    copy_atomically,
    cut,
    cut_torn_line,
    remove_temporary,
    seal,
    sealed_files,
    write_atomically,
)


def full(descriptor: int) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    write_atomically(path, b"old and whole")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.where == str(path)
    assert "last checkpoint is intact" in caught.value.hint
    assert path.read_bytes() == b"old and whole"
    assert names(tmp_path) == ["model"]


def test_a_rename_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "model" / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path / "model", b"new")
    assert names(tmp_path) == ["model"]


def test_a_writer_that_is_interrupted_leaves_nothing_behind_and_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(point: str, **where: str) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("strategies.common.files.reach", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "model", b"new")
    assert names(tmp_path) == []


def test_a_path_that_cannot_be_written_is_a_storage_error_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        write_atomically(tmp_path / "file" / "model", b"new")
    with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
        append_line(tmp_path / "absent" / "log", {})


def test_a_file_is_on_disk_whole_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    forced: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda file: forced.append((os.fstat(file).st_size, path.exists()))
    )
    write_atomically(path, b"content")
    assert forced[0] == (len(b"content"), False)
    assert len(forced) == 2  # and the folder, after the rename
    assert forced[1][1]
    assert path.read_bytes() == b"content"


def no_such_call(*args: int) -> NoReturn:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def half(source: int, target: int, count: int) -> int:
    """Copy half of the file and then stop, as some file systems do."""
    if os.lseek(source, 0, os.SEEK_CUR):
        return 0
    return os.write(target, os.read(source, count // 2))


@pytest.mark.parametrize("call", [None, no_such_call, half], ids=["kernel", "unknown", "half"])
def test_a_copy_is_a_file_of_its_own_in_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    if call:
        monkeypatch.setattr(os, "copy_file_range", call, raising=False)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content := bytes(range(256)) * 1001)
    target.write_bytes(b"old")
    copy_atomically(source, target)
    assert target.read_bytes() == content
    target.open("r+b").write(b"changed in place")
    assert source.read_bytes() == content
    assert names(tmp_path) == ["source", "target"]


def test_a_copy_that_cannot_be_written_leaves_both_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        copy_atomically(source, target)
    assert (source.read_bytes(), target.read_bytes()) == (b"new", b"old")
    assert names(tmp_path) == ["source", "target"]


def test_a_source_that_cannot_be_read_is_damaged_and_the_target_is_left(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    with pytest.raises(DamagedError, match="cannot be read: No such file") as caught:
        copy_atomically(tmp_path / "source", tmp_path / "target")
    assert caught.value.where == str(tmp_path / "source")
    assert (tmp_path / "target").read_bytes() == b"old"
    assert names(tmp_path) == ["target"]


def test_each_line_of_a_log_is_forced_to_disk_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: forced.append(os.fstat(file).st_size))
    sizes = []
    for number in (1, 2):
        append_line(path, {"number": number})
        sizes.append(path.stat().st_size)
    assert forced == sizes
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [1, 2]


def test_what_json_cannot_hold_is_written_as_null_however_deep(tmp_path: Path) -> None:
    fields = {"a": math.nan, "b": {"c": (0.5, -math.inf), "d": [[math.inf]]}, "e": 1}
    append_line(tmp_path / "log", fields)
    text = (tmp_path / "log").read_text()
    assert json.loads(text) == {"a": None, "b": {"c": [0.5, None], "d": [[None]]}, "e": 1}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_file_is_cut_to_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"0123456789")
    cut(tmp_path / "log", 4)
    assert (tmp_path / "log").read_bytes() == b"0123"


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"", b""),
        (b"one\n", b"one\n"),
        (b"one\ntwo\n", b"one\ntwo\n"),
        (b"one\ntw", b"one\n"),
        (b"one\n\xc3", b"one\n"),  # half of a letter
        (b"on", b""),
    ],
)
def test_a_line_that_was_being_written_is_removed_and_no_other(
    tmp_path: Path, content: bytes, left: bytes
) -> None:
    (tmp_path / "log").write_bytes(content)
    cut_torn_line(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == left


def test_where_there_is_no_log_none_is_made(tmp_path: Path) -> None:
    cut_torn_line(tmp_path / "log")
    assert names(tmp_path) == []


CONTENT = bytes(range(256)) * 4


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return seal(tmp_path, "000007", ".json", CONTENT)


def test_a_sealed_file_has_its_checksum_in_its_name(sealed: Path) -> None:
    stem, digest, suffix = sealed.name.split(".")
    assert (stem, suffix, len(digest)) == ("000007", "json", DIGEST_CHARS)
    assert sealed.read_bytes() == CONTENT
    check_seal(sealed)


def test_equal_contents_are_one_file_and_others_are_another(sealed: Path) -> None:
    assert seal(sealed.parent, "000007", ".json", CONTENT) == sealed
    assert seal(sealed.parent, "000007", ".json", CONTENT[:-1]) != sealed
    assert len(names(sealed.parent)) == 2


def test_a_stem_may_have_parts_of_its_own(tmp_path: Path) -> None:
    path = seal(tmp_path, "plan.site", ".safetensors", CONTENT)
    assert path.name.startswith("plan.site.")
    check_seal(path)


@pytest.mark.parametrize("keep", [0, 1, len(CONTENT) - 1])
def test_a_sealed_file_that_was_cut_is_damaged(sealed: Path, keep: int) -> None:
    cut(sealed, keep)
    with pytest.raises(DamagedError, match="does not match the checksum in its name") as caught:
        check_seal(sealed)
    assert caught.value.where == str(sealed)
    assert f"{keep} bytes" in str(caught.value.got)


@pytest.mark.parametrize("bit", [0, 4099, 8 * len(CONTENT) - 1])
def test_a_sealed_file_of_which_one_bit_changed_is_damaged(sealed: Path, bit: int) -> None:
    content = bytearray(CONTENT)
    content[bit // 8] ^= 1 << bit % 8
    sealed.write_bytes(content)
    with pytest.raises(DamagedError, match="checksum"):
        check_seal(sealed)


def test_a_sealed_file_to_which_something_was_added_is_damaged(sealed: Path) -> None:
    sealed.write_bytes(CONTENT + b"\x00")
    with pytest.raises(DamagedError, match="checksum"):
        check_seal(sealed)


def test_a_sealed_file_under_anothers_name_is_damaged(sealed: Path) -> None:
    other = seal(sealed.parent, "000008", ".json", b"other")
    sealed.rename(other)
    with pytest.raises(DamagedError, match="checksum"):
        check_seal(other)


def test_a_sealed_file_that_is_missing_is_damaged(sealed: Path) -> None:
    sealed.unlink()
    with pytest.raises(DamagedError, match="cannot be read: No such file or directory"):
        check_seal(sealed)


def test_sealed_files_are_found_in_the_order_of_their_names_without_what_is_half_written(
    tmp_path: Path,
) -> None:
    paths = [seal(tmp_path, stem, ".json", stem.encode()) for stem in ("000010", "000009")]
    seal(tmp_path, "000009", ".safetensors", b"")
    (tmp_path / f".{paths[0].name}.17.tmp").write_bytes(b"half")
    (tmp_path / ".000011.json").write_bytes(b"half")
    paths[0].with_name("000008.0.json.damaged").write_bytes(b"set aside")
    assert list(sealed_files(tmp_path, ".json")) == paths[::-1]
    assert list(sealed_files(tmp_path / "absent", ".json")) == []


def test_what_writers_that_died_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".model.17.tmp", ".lock", "notes.tmp", "model"):
        (tmp_path / name).write_bytes(b"")
    remove_temporary(tmp_path)
    assert names(tmp_path) == [".lock", "model", "notes.tmp"]
