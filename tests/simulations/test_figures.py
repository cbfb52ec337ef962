"""The pictures of a comparison."""

import io

import numpy as np
import pytest
from PIL import Image

from mdc_flower.reports.drawing import png
from simulations.figures import draw_curves, draw_frontier
from simulations.outcome import Outcome
from tests.simulations.made_up import MEGABYTE, outcome, results

FULL = {"a": {1: outcome((2, 0.5), (4, 0.9)), 2: outcome((2, 0.4), (4, 0.8))}}
EXCHANGED = {"round": 2, "sent_bytes": MEGABYTE, "received_bytes": MEGABYTE}


def picture(b: dict[int, Outcome], split: str = "test") -> Image.Image:
    curves = draw_curves(results({**FULL, "b": b}, split=split, seeds=[1, 2]))
    image = Image.open(io.BytesIO(png(curves, dpi=130)))
    image.load()
    return image


@pytest.mark.parametrize(
    "b",
    [
        {1: outcome((1, 0.6), (4, 0.85)), 2: outcome((1, 0.5), (4, 0.7))},
        {1: outcome((4, 0.9)), 2: outcome((4, 0.9))},
        {1: outcome((1, 0.6), (4, 0.9)), 2: outcome((3, 0.5), (4, 0.7))},
        {1: outcome((4, 0.5))},
        {1: outcome((4, 1.0)), 2: outcome((4, 0.0))},
        # The last round of one seed failed: the seeds share no point at all.
        {1: outcome((1, 0.6), (4, 0.9)), 2: outcome((2, 0.5))},
    ],
    ids=["even", "one-point", "last-shared", "one-seed", "extremes", "none-shared"],
)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_picture_is_a_png_whatever_points_the_seeds_share(
    b: dict[int, Outcome], split: str
) -> None:
    image = picture(b, split)
    assert image.format == "PNG"
    assert image.size == (1040, 624)


def test_the_picture_shows_the_outcomes() -> None:
    one, other = picture({1: outcome((4, 0.9))}), picture({1: outcome((4, 0.6))})
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("highlight", "named"), [([], ["a", "b"]), (["b"], ["b"])], ids=["all", "one"]
)
def test_arms_are_named_at_the_ends_of_their_lines(highlight: list[str], named: list[str]) -> None:
    axes = draw_curves(results({**FULL, "b": FULL["a"]}, highlight=highlight)).axes[0]
    assert sorted(text.get_text().strip() for text in axes.texts) == named
    assert len(axes.lines) == 2, "the others are drawn as well"


def test_the_frontier_has_a_point_for_what_exchanges_and_a_line_for_what_does_not() -> None:
    b = {seed: outcome((4, 0.8), **EXCHANGED) for seed in (1, 2)}
    axes = draw_frontier(results({**FULL, "b": b})).axes[0]
    places = [np.array(line.get_data(), dtype=np.float64).T for line in axes.lines]
    # Means: 0.85 for what exchanges nothing, and 0.8 at 2 MB.
    assert any(np.allclose(place[:, 1], 0.85) and len(place) == 2 for place in places)
    assert any(np.allclose(place, [[2.0, 0.8]]) for place in places if len(place) == 1)
    assert axes.get_xscale() == "log"
    assert {"a", "b", "averaging after each step"} == {t.get_text().strip() for t in axes.texts}
