"""Pictures on a page: equal bits, and texts that are what they are."""

import base64
import xml.etree.ElementTree as ET

import pytest
from matplotlib.figure import Figure

from mdc_flower.reports.plotting import shortened, spread_heights, svg_uri


def figure(text: str = "text") -> Figure:
    one = Figure(figsize=(3, 2))
    axes = one.subplots()
    axes.plot([1, 2], [1, 2], marker="o")
    axes.fill_between([1, 2], [0, 0], [1, 1], hatch="//")
    axes.text(1, 1, text, parse_math=False)
    return one


def test_equal_figures_have_equal_addresses_that_hold_their_texts() -> None:
    address = svg_uri(figure("a $b_1$ <c>"))
    assert address == svg_uri(figure("a $b_1$ <c>"))
    head, _, content = address.partition(",")
    assert head == "data:image/svg+xml;base64"
    root = ET.fromstring(base64.b64decode(content))
    assert "a $b_1$ <c>" in [element.text for element in root.iter()]


@pytest.mark.parametrize(
    ("heights", "apart"),
    [
        ([], []),
        ([1.0, 5.0], [1.0, 5.0]),
        # A gap apart around their middle, 1.5.
        ([1.0, 1.5, 2.0], [-0.5, 1.5, 3.5]),
        ([5.0, 5.0], [4.0, 6.0]),
        ([8.0, 9.0, 10.0], [6.0, 8.0, 10.0]),  # no room above 10
        ([1.0, 9.0, 9.0], [1.0, 8.0, 10.0]),
    ],
)
def test_labels_are_pushed_apart_around_their_middle_and_below_the_top(
    heights: list[float], apart: list[float]
) -> None:
    assert spread_heights(heights, gap=2.0, top=10.0) == pytest.approx(apart)


def test_a_long_name_is_shortened() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "ab…"
