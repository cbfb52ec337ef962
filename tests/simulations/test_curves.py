"""The picture of a comparison, and the interval it is read with."""

import io
import math

import pytest
from PIL import Image

from simulations.arm import Arm, ArmTable
from simulations.baselines import Outcome, Point
from simulations.results import Interval, csv_table, draw_curves, pushed_apart, table_rows

ARMS = [Arm(key=key, table=ArmTable(name=key.upper()), values={}) for key in ("a", "b")]


def outcome(*points: tuple[int, float]) -> Outcome:
    return Outcome([Point(i, *point, point[1]) for i, point in enumerate(points)], 1, 0, 1.0)


FULL = {"a": {1: outcome((2, 0.5), (4, 0.9)), 2: outcome((2, 0.4), (4, 0.8))}}


def picture(b: dict[int, Outcome], split: str = "test") -> Image.Image:
    image = Image.open(io.BytesIO(draw_curves("title", ARMS, {**FULL, "b": b}, split)))
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
    ("heights", "apart"),
    [
        ([], []),
        ([1.0, 5.0], [1.0, 5.0]),
        ([1.0, 1.5, 1.5], [1.0, 3.0, 5.0]),
        ([8.0, 9.0, 10.0], [6.0, 8.0, 10.0]),  # no room above 10
        ([1.0, 9.0, 9.0], [1.0, 8.0, 10.0]),
    ],
)
def test_labels_are_pushed_up_and_where_there_is_no_room_down(
    heights: list[float], apart: list[float]
) -> None:
    assert pushed_apart(heights, gap=2.0, top=10.0) == apart


# Student's t at 97.5% for 1, 2 and 4 degrees of freedom: 12.706205, 4.302653, 2.776445.
#   0, 1: deviation 1 / sqrt(2); 12.706205 / sqrt(2) / sqrt(2) = 6.3531025
#   1, 2, 3: deviation 1; 4.302653 / sqrt(3) = 2.484138
#   1 to 5: deviation sqrt(10 / 4); 2.776445 * sqrt(2.5) / sqrt(5) = 1.963243
#   equal values: no width
@pytest.mark.parametrize(
    ("values", "mean", "half_width"),
    [
        ([0.0, 1.0], 0.5, 6.3531025),
        ([1.0, 2.0, 3.0], 2.0, 2.484138),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 1.963243),
        ([0.25] * 4, 0.25, 0.0),
    ],
)
def test_an_interval_is_students(values: list[float], mean: float, half_width: float) -> None:
    interval = Interval.of(values)
    assert interval.mean == mean
    assert interval.half_width == pytest.approx(half_width, rel=1e-6)
    assert Interval.of(values[::-1]) == interval


@pytest.mark.parametrize(
    ("interval", "plain", "signed"),
    [
        (Interval(0.98705, 0.0035), "98.70 ± 0.35", "+98.70 ± 0.35"),
        (Interval(-0.01, 0.02), "-1.00 ± 2.00", "-1.00 ± 2.00"),
        (Interval(0.0, math.nan), "0.00", "+0.00"),
    ],
)
def test_an_interval_is_written_in_percent(interval: Interval, plain: str, signed: str) -> None:
    assert interval.percent() == plain
    assert interval.percent(sign=True) == signed


def test_the_difference_of_the_first_arm_to_itself_is_nothing() -> None:
    first, _ = table_rows(ARMS, {**FULL, "b": FULL["a"]}, "test")
    assert first.difference == Interval(0.0, 0.0)


def test_a_csv_table_is_quoted_and_exact() -> None:
    # Means of 0.5 and 1, 0.75, with a half width of 12.706205 * 0.25 = 3.1765512.
    one = {1: outcome((4, 0.5)), 2: outcome((4, 1.0))}
    arm = Arm(key="a", table=ArmTable(name="a, quoted"), values={})
    header, line = csv_table(table_rows([arm], {"a": one}, "test")).splitlines()
    assert header == (
        "arm,accuracy,accuracy_ci95,difference,difference_ci95,rounds,exchanged_megabytes,seconds"
    )
    assert line.startswith('"a, quoted",0.75,3.17655118')
    assert line.endswith(",0.0,0.0,1.0,0.0,1.0")
