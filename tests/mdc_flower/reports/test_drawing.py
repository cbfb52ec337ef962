"""Pictures on a page: equal bits, ids of their own, texts that are what they are."""

import re
import xml.etree.ElementTree as ET

import pytest
from matplotlib.figure import Figure

from mdc_flower.reports.drawing import LineEnd, inline_svg, label_ends, pushed_apart, shortened


def figure(text: str = "text") -> Figure:
    one = Figure(figsize=(3, 2))
    axes = one.subplots()
    axes.plot([1, 2], [1, 2], marker="o")
    axes.fill_between([1, 2], [0, 0], [1, 1], hatch="//")
    axes.text(1, 1, text, parse_math=False)
    return one


def test_equal_figures_give_equal_text() -> None:
    assert inline_svg(figure(), "a", "label") == inline_svg(figure(), "a", "label")


def test_a_picture_says_what_it_is_and_asks_for_nothing() -> None:
    text = inline_svg(figure(), "curve", 'rises from "0" & <up>')
    root = ET.fromstring(text)
    assert (root.get("id"), root.get("role")) == ("curve", "img")
    assert root.get("aria-label") == 'rises from "0" & <up>'
    assert root.get("viewBox")
    assert set(re.findall(r"https?://[^\"'<> ]+", text)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "<style" not in text
    assert "<?xml" not in text


def test_two_pictures_share_no_id_and_refer_to_their_own() -> None:
    texts = [inline_svg(figure(), name, "label") for name in ("one", "two")]
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in texts]
    assert not ids[0] & ids[1]
    for text, own in zip(texts, ids, strict=True):
        referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
        names = {one or other for one, other in referred}
        assert names
        assert names <= own


def test_a_text_stays_a_text() -> None:
    assert "a $b_1$ &lt;c&gt;" in inline_svg(figure("a $b_1$ <c>"), "a", "label")


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
    assert pushed_apart(heights, gap=2.0, top=10.0) == pytest.approx(apart)


def test_every_line_is_named_once_in_its_colour() -> None:
    axes = figure().axes[0]
    before = len(axes.texts)
    label_ends(axes, [LineEnd(2, 1.0, "lower", "red"), LineEnd(2, 1.0, "upper", "blue")])
    labels = axes.texts[before:]
    assert {(label.get_text(), label.get_color()) for label in labels} == {
        ("lower", "red"),
        ("upper", "blue"),
    }
    assert len({label.xy[1] for label in labels}) == 2  # type: ignore[attr-defined]


def test_a_long_name_is_shortened() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "ab…"
