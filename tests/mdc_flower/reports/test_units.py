"""Numbers as people read them."""

import pytest

from mdc_flower.reports.units import format_bytes, format_number, format_percent, format_seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (16_712_345, "16.7 MB"),
        (2_500_000_000, "2.5 GB"),
        (3e18, "3000.0 PB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.94, "3.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_what_is_not_known_is_empty() -> None:
    assert format_percent(None) == format_percent(float("nan")) == ""
    assert format_number(None) == format_number(float("nan")) == ""
    assert format_percent(0.98765) == "98.77 %"
    assert format_number(0.012345) == "0.0123"
