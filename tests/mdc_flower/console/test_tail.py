from pathlib import Path

from mdc_flower.console.tail import Tail, shorten


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def test_only_what_comes_from_now_on_is_returned_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    tail = Tail(path)
    assert tail.new_lines() == []
    append(path, b"one\ntwo\nthr")
    assert tail.new_lines() == [b"one", b"two"]
    assert tail.new_lines() == []
    append(path, b"ee\n")
    assert tail.new_lines() == [b"three"]


def test_a_line_that_was_not_finished_counts_as_new(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\nhal")
    tail = Tail(path)
    append(path, b"f\n")
    assert tail.new_lines() == [b"half"]


def test_the_file_need_not_be_there_yet_and_may_go(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.new_lines() == []
    append(path, b"one\n")
    assert tail.new_lines() == [b"one"]
    path.unlink()
    assert tail.new_lines() == []


def test_a_file_that_was_shortened_is_followed_from_its_new_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100 + b"\n")
    tail = Tail(path)
    path.write_bytes(b"")
    append(path, b"one\n")
    assert tail.new_lines() == [b"one"]


def test_a_long_log_is_moved_away_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "superlink.log"
    with path.open("ab", buffering=0) as writer:  # as Popen has it
        writer.write(b"0123456789\n")
        shorten(path, 11)
        assert path.read_bytes() == b"0123456789\n", "as long as it may be"
        writer.write(b"a")
        shorten(path, 11)
        writer.write(b"b")
    assert path.read_bytes() == b"b"
    assert (tmp_path / "superlink.log.1").read_bytes() == b"0123456789\na"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["superlink.log", "superlink.log.1"]


def test_a_log_that_cannot_be_moved_stays(tmp_path: Path) -> None:
    path = tmp_path / "log"
    shorten(path, 1)
    assert not path.exists()
    path.write_bytes(b"long enough")
    (tmp_path / "log.1").mkdir()
    shorten(path, 1)
    assert path.read_bytes() == b"long enough"
