"""Arm files, and ``key=value`` on a command line."""

from pathlib import Path
from typing import Any

import pytest

from mdc_flower.common.config_files import parse_setting, read_arm
from strategies.common.errors import ConfigError


def test_an_arm_file_gives_its_keys_and_its_table_apart(tmp_path: Path) -> None:
    file = tmp_path / "arm.toml"
    file.write_text('lr-max = 0.5\ndataset = "digits"\n\n[arm]\nname = "an arm"\n')
    assert read_arm(file) == ({"lr-max": 0.5, "dataset": "digits"}, {"name": "an arm"})


def test_an_arm_file_needs_no_table(tmp_path: Path) -> None:
    file = tmp_path / "arm.toml"
    file.write_text("seed = 3\n")
    assert read_arm(file) == ({"seed": 3}, {})


def test_an_arm_file_is_read_as_utf_8_as_toml_is(tmp_path: Path) -> None:
    file = tmp_path / "arm.toml"
    file.write_bytes('[arm]\nname = "Größe ±"\n'.encode())
    assert read_arm(file)[1] == {"name": "Größe ±"}


def test_a_byte_order_mark_of_an_editor_is_no_part_of_an_arm(tmp_path: Path) -> None:
    file = tmp_path / "arm.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 3\n")
    assert read_arm(file) == ({"seed": 3}, {})


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_arm(path)
    assert caught.value.where == str(path)
    return caught.value


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in str(refusal(tmp_path / "missing.toml"))


def test_a_folder_is_not_an_arm_file(tmp_path: Path) -> None:
    assert "cannot be read" in str(refusal(tmp_path))


@pytest.mark.parametrize("content", [b"lr-max 0.1\n", b"lr-max = \n", b"a = 1\na = 2\n", b"[arm\n"])
def test_a_file_that_is_not_toml_is_named_with_the_place(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    message = str(refusal(file))
    assert "not TOML" in message
    assert "line" in message


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "picture.toml"
    file.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    refusal(file)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("seed = 3", "seed", 3),
        ("lr-max=0.1", "lr-max", 0.1),
        ("lr-max=1e-3", "lr-max", 0.001),
        ("nesterov=true", "nesterov", True),
        ("nesterov=True", "nesterov", "True"),  # not TOML: a plain string
        ("model=mlp", "model", "mlp"),
        ('model="mlp"', "model", "mlp"),
        ("device=cuda:1", "device", "cuda:1"),
        ("output-dir=~/runs/a b", "output-dir", "~/runs/a b"),
        ("dataset=my_lab:load", "dataset", "my_lab:load"),
        ("data-root=/a=b", "data-root", "/a=b"),
        ("data-root=", "data-root", ""),
        ("seed=007", "seed", "007"),
    ],
)
def test_a_setting_is_toml_or_else_a_plain_string(text: str, key: str, value: Any) -> None:
    parsed = parse_setting(text)
    assert parsed == (key, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize("text", ["seed", "", "lr-max 0.1"])
def test_a_setting_without_an_equals_sign_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not of the form key=value") as caught:
        parse_setting(text)
    assert (caught.value.where, caught.value.got) == ("--set", text)
