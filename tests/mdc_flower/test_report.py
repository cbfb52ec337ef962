"""The picture of a run, and the work behind each of its rounds."""

import io
from typing import Any

import pytest
from PIL import Image

from mdc_flower.report import draw_run, work_done
from tests.mdc_flower.examples import plan


def line(number: int, accuracy: float | None = 0.5, **orders: Any) -> dict[str, Any]:
    """Return a line of history; of a failed round without an accuracy."""
    one = plan(round=number, lr_max=0.1, lr_min=0.05, shape="cosine", **orders)
    failed = accuracy is None
    return {
        "round": number,
        "plan": one.model_dump() | {"plan_id": one.plan_id},
        "participants": {} if failed else {"site-0": {"train-accuracy": 0.4}},
        "relative_change": None if failed else 0.1,
        "failed": failed,
        "evaluation": {}
        if failed
        else {"validation-accuracy": accuracy, "test-accuracy": accuracy},
    }


# Epochs 2, 2 and 4: 2, 4 and 8 behind the model. A failed round's work was done too.
@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], []),
        ([line(1, local_epochs=2), line(2, local_epochs=2), line(3, local_epochs=4)], [2, 4, 8]),
        ([line(1, local_epochs=1), line(2, None, local_epochs=2)], [1, 3]),
        ([line(1, local_steps=100), line(2, local_steps=50)], [100, 150]),
    ],
)
def test_work_adds_up_over_the_rounds(history: list[dict[str, Any]], expected: list[int]) -> None:
    assert work_done(history) == expected


def picture(history: list[dict[str, Any]]) -> Image.Image:
    image = Image.open(io.BytesIO(draw_run(history)))
    image.load()
    return image


@pytest.mark.parametrize(
    "history",
    [
        [],
        [line(1)],
        [line(1), line(2), line(3)],
        [line(1, None), line(2)],
        [line(1, None), line(2, None)],
        [line(1, local_steps=10), line(2, local_steps=10)],
        [line(1) | {"evaluation": {}}],  # a coordinator without validation or test examples
        [line(1) | {"relative_change": 0.0}],
    ],
    ids=["empty", "one", "three", "gap", "failed", "steps", "not-evaluated", "settled"],
)
def test_the_picture_is_a_png_whatever_happened(history: list[dict[str, Any]]) -> None:
    image = picture(history)
    assert image.format == "PNG"
    # 8 by 7 inches at 120 dots an inch
    assert image.size == (960, 840)


def test_the_picture_shows_the_accuracy() -> None:
    low, high = picture([line(1, 0.1), line(2, 0.2)]), picture([line(1, 0.1), line(2, 0.9)])
    assert low.tobytes() != high.tobytes()


def test_equal_histories_are_drawn_equally() -> None:
    assert picture([line(1)]).tobytes() == picture([line(1)]).tobytes()
