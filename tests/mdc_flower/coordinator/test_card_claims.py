"""What a card may claim: parts of a data set, and how many examples a site has."""

from dataclasses import replace
from pathlib import Path

import pytest

from mdc_flower.coordinator.card_claims import with_card_checks
from strategies.exchange.membership import Admission
from strategies.exchange.messages import SiteCard

CARD = SiteCard("oslo", 0, "test")


def reason(card: SiteCard, num_sites: int = 3, kit: str = "") -> str:
    return with_card_checks(Admission(), num_sites, kit).judge(17, card) or ""


@pytest.fixture
def kit(tmp_path: Path) -> str:
    """Return a coordinator's kit that has agreed on bounds with one site."""
    path = tmp_path / "kit.toml"
    path.write_text("[examples]\noslo = [100, 5000]\nrome = [100, 0]\n")
    return str(path)


def test_a_real_site_that_claims_to_be_one_of_seven_parts_is_refused_alone() -> None:
    assert "one of 7 parts of a data set, but the run has 3 sites" in reason(
        replace(CARD, num_partitions=7)
    )
    for num_partitions, simulated in ((0, False), (3, False), (7, True)):
        told = replace(CARD, num_partitions=num_partitions, simulated=simulated)
        assert reason(told) == ""
    assert reason(replace(CARD, num_partitions=7), num_sites=0) == ""


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("oslo", 100, ""),
        ("oslo", 5000, ""),
        (
            "oslo",
            99,
            "it has 99 training examples; the agreed number is 100 or more, and at most 5000",
        ),
        (
            "oslo",
            5001,
            "it has 5001 training examples; the agreed number is 100 or more, and at most 5000",
        ),
        ("rome", 10**9, ""),
        (
            "oslo",
            0,
            "it does not report its number of training examples; the agreed number is 100 or more",
        ),
        ("other", 0, ""),
    ],
)
def test_a_site_has_as_many_examples_as_were_agreed_on(
    kit: str, name: str, count: int, expected: str
) -> None:
    found = reason(replace(CARD, name=name, num_examples=count), kit=kit)
    assert found.startswith(expected)
    assert bool(found) is bool(expected)


def test_who_is_not_admitted_has_nothing_to_claim() -> None:
    refusing = Admission(lambda node, card: "unknown key", lambda node: f"the node {node}")
    admission = with_card_checks(refusing, 3)
    assert admission.judge(17, CARD) == "unknown key"
    assert admission.name_of(17) == "the node 17"
