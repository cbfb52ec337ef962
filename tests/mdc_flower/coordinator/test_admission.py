"""Admission: which nodes take part, by version and by the register of sites."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mdc_flower import __version__
from mdc_flower.coordinator.admission import admission, read_register
from strategies.common.errors import ConfigError
from strategies.exchange.messages import SiteCard

NORTH, SOUTH = 8_243_971_190_237_113_041, 18_446_744_073_709_551_615


def card(name: str = "north", version: str = __version__) -> SiteCard:
    return SiteCard(name, 0, version)


def test_a_node_with_other_code_of_the_users_takes_no_part(register: Path) -> None:
    ours = {"model": "a" * 64, "dataset": "b" * 64}
    for where in ("", str(register)):
        judge = admission(where, ours).judge
        assert judge(NORTH, replace(card(), model_code="a" * 64, dataset_code="b" * 64)) is None
        assert judge(NORTH, card()) is None  # it does not use it, or is of an older version
        other = judge(NORTH, replace(card(), dataset_code="c" * 64))
        assert other is not None
        assert "its code for the run's 'dataset' differs from the coordinator's" in other
        assert "cccccccccccc" in other
        assert "bbbbbbbbbbbb" in other
        assert "Install the same code at both" in other
    assert admission("").judge(NORTH, replace(card(), model_code="c" * 64)) is None


@pytest.fixture
def register(tmp_path: Path) -> Path:
    path = tmp_path / "sites.json"
    path.write_text(json.dumps({"north": str(NORTH), "south": str(SOUTH)}))
    return path


def test_without_a_register_every_site_is_believed_its_name() -> None:
    judge = admission("").judge
    assert judge(NORTH, card("north")) is None
    assert judge(NORTH, card("south")) is None


def test_a_node_of_another_version_takes_no_part(register: Path) -> None:
    for judge in (admission("").judge, admission(str(register)).judge):
        reason = judge(NORTH, card(version="0.0.1"))
        assert reason == (
            f"it runs mdc-flower 0.0.1, the coordinator runs {__version__}. "
            "Install the same version at both"
        )


def test_a_registered_node_speaks_under_its_own_name_and_no_other(register: Path) -> None:
    judge = admission(str(register)).judge
    assert judge(NORTH, card("north")) is None
    assert judge(SOUTH, card("south")) is None
    assert (
        judge(SOUTH, card("north")) == "it claims this name, but its key is registered for 'south'"
    )
    assert (
        judge(SOUTH, card("west")) == "it claims this name, but its key is registered for 'south'"
    )


def test_an_unknown_node_takes_no_part_whatever_its_name(register: Path) -> None:
    judge = admission(str(register)).judge
    for name in ("north", "west"):
        assert judge(7, card(name)) == "its key is not registered for any site"


def test_the_register_is_read_anew_for_each_node(register: Path) -> None:
    judge = admission(str(register)).judge
    register.write_text(json.dumps({"north": str(SOUTH)}))
    assert judge(NORTH, card("north")) == "its key is not registered for any site"
    assert judge(SOUTH, card("north")) is None


BAD = [
    None,
    "",
    "{",
    "[]",
    '"north"',
    '{"north": "seven"}',
    '{"north": null}',
    '{"north": []}',
    "\udcff",
]


@pytest.mark.parametrize("text", BAD)
def test_a_register_that_cannot_be_read_is_an_error_with_its_path(
    register: Path, text: str | None
) -> None:
    judge = admission(str(register)).judge
    if text is None:
        register.unlink()
    else:
        register.write_bytes(text.encode("utf-8", "surrogateescape"))
    for read in (
        lambda: read_register(register),
        lambda: admission(str(register)),
        lambda: judge(NORTH, card()),
    ):
        with pytest.raises(ConfigError, match="the register of sites cannot be read") as caught:
            read()
        assert caught.value.where == str(register)
        assert "mdc coordinator start" in caught.value.hint


def test_an_empty_register_admits_no_one(tmp_path: Path) -> None:
    path = tmp_path / "sites.json"
    path.write_text("{}")
    assert admission(str(path)).judge(NORTH, card()) == "its key is not registered for any site"


def test_a_node_is_called_by_the_name_it_is_registered_for(register: Path) -> None:
    assert admission(str(register)).name_of(SOUTH) == "south"
    assert admission(str(register)).name_of(7) == "node 7"
    assert admission("").name_of(NORTH) == f"node {NORTH}"


def test_a_node_whose_data_have_another_form_takes_no_part() -> None:
    judge = admission("", data_form="type:aa shape:bb classes:cc").judge
    assert judge(NORTH, replace(card(), data_form="type:aa shape:bb classes:cc")) is None
    assert judge(NORTH, card()) is None  # it has a job or a command of its own
    assert judge(NORTH, replace(card(), data_form="type:aa shape:bc classes:cd")) == (
        "its data differ from the coordinator's in: shape, classes. A contract says what they must "
        "have in common"
    )
