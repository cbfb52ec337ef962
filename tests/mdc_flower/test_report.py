"""The picture of a run, and the work behind each of its rounds."""

import io
from typing import Any

import pytest
from PIL import Image

from mdc_flower.report import draw_run, site_scores, work_done
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


def by_sites(before: float | None = None, after: float | None = None) -> dict[str, Any]:
    """Return what a line has of a round that only the sites have evaluated."""
    metrics = [{} if x is None else {"validation-accuracy": x} for x in (before, after)]
    return {"evaluation": {}, "start_evaluation": metrics[0], "site_evaluation": metrics[1]}


# Epochs 2, 2 and 4 end at 2, 4 and 8. A round's own model has its score from the next round.
@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], {}),
        ([line(1)], {}),  # written by a version that did not know it
        ([line(1, local_epochs=2) | by_sites(0.1)], {0: 0.1}),
        (
            [
                line(1, local_epochs=2) | by_sites(0.1),
                line(2, local_epochs=2) | by_sites(0.5),
                line(3, local_epochs=4) | by_sites(0.7, 0.9),
            ],
            {0: 0.1, 2: 0.5, 4: 0.7, 8: 0.9},
        ),
        (  # went on after its end: the last model was evaluated then, and at the start
            [
                line(1, local_epochs=2) | by_sites(0.1, 0.5),
                line(2, local_epochs=2) | by_sites(0.5, 0.6),
            ],
            {0: 0.1, 2: 0.5, 4: 0.6},
        ),
        (  # kept back in one round
            [line(1, local_epochs=2) | by_sites(), line(2, local_epochs=2) | by_sites(0.5)],
            {2: 0.5},
        ),
        (  # a failed round has no model of its own; the one it started from was evaluated
            [
                line(1, local_epochs=2) | by_sites(0.1),
                line(2, None, local_epochs=2) | by_sites(0.5),
            ],
            {0: 0.1, 2: 0.5},
        ),
        ([line(1, local_steps=100) | by_sites(0.1, 0.9)], {0: 0.1, 100: 0.9}),
    ],
    ids=["empty", "old", "one", "three", "resumed", "kept-back", "failed", "steps"],
)
def test_the_sites_scores_stand_at_the_work_behind_the_model_they_are_of(
    history: list[dict[str, Any]], expected: dict[int, float]
) -> None:
    assert site_scores(history) == expected


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
        [line(1) | by_sites(0.1), line(2) | by_sites(0.2, 0.3)],
        [line(1) | by_sites() | {"participants": {"site-0": {"num-examples": 3}}}],
        [
            line(1),
            line(2) | {"participants": {"a": {"num-examples": 3}, "b": {"train-accuracy": 0.5}}},
        ],
    ],
    ids=[
        "empty",
        "one",
        "three",
        "gap",
        "failed",
        "steps",
        "not-evaluated",
        "settled",
        "by-sites",
        "all-kept-back",
        "some-kept-back",
    ],
)
def test_the_picture_is_a_png_whatever_happened(history: list[dict[str, Any]]) -> None:
    image = picture(history)
    assert image.format == "PNG"
    # 8 by 7 inches at 120 dots an inch
    assert image.size == (960, 840)


def test_the_picture_shows_the_accuracy() -> None:
    low, high = picture([line(1, 0.1), line(2, 0.2)]), picture([line(1, 0.1), line(2, 0.9)])
    assert low.tobytes() != high.tobytes()


def test_the_picture_shows_the_accuracy_at_the_sites() -> None:
    low = picture([line(1) | by_sites(0.1, 0.2)])
    high = picture([line(1) | by_sites(0.1, 0.3)])
    without = picture([line(1) | by_sites()])
    assert len({image.tobytes() for image in (low, high, without)}) == 3


@pytest.mark.filterwarnings("error")
def test_a_run_of_which_nothing_is_known_is_drawn_without_a_warning() -> None:
    one = line(1) | by_sites() | {"participants": {"site-0": {"num-examples": 3}}}
    assert picture([one]).size == (960, 840)


def test_equal_histories_are_drawn_equally() -> None:
    assert picture([line(1)]).tobytes() == picture([line(1)]).tobytes()
