"""The round plan: its learning rates, its id, and what a site rejects."""

import hashlib
import itertools
import math
from typing import Any, get_args

import pytest
from flwr.app import ConfigRecord
from pydantic import ValidationError

from strategies.common.errors import PlanError
from strategies.method.round_plan import CycleShape, RoundPlan, epochs_of, parts_in, units_of

SHAPES: tuple[CycleShape, ...] = get_args(CycleShape)
STEPS = [step / 64 for step in range(65)]


def plan(**changes: Any) -> RoundPlan:
    fields: dict[str, Any] = {
        "round": 3,
        "local_epochs": 2,
        "lr_max": 1.0,
        "lr_min": 0.25,
        "seed": 7,
    }
    return RoundPlan(**(fields | changes))


# lr_max = 1, lr_min = 1/4, so that every value below is exact in binary.
#   exponential at 1/2: (1/4)^(1/2) = 1/2, the geometric mean
#   cosine and linear at 1/2: (1 + 1/4) / 2 = 5/8, the arithmetic mean
@pytest.mark.parametrize(
    ("shape", "start", "middle", "end"),
    [
        ("exponential", 1.0, 0.5, 0.25),
        ("cosine", 1.0, 0.625, 0.25),
        ("linear", 1.0, 0.625, 0.25),
        ("triangular", 0.25, 1.0, 0.25),
        ("constant", 1.0, 1.0, 1.0),
        ("global-cosine", 1.0, 0.625, 0.25),
        ("global-linear", 1.0, 0.625, 0.25),
    ],
)
def test_the_learning_rate_is_exact_at_the_start_the_middle_and_the_end(
    shape: CycleShape, start: float, middle: float, end: float
) -> None:
    cycle = plan(shape=shape)
    assert [cycle.lr_at(progress) for progress in (0, 0.5, 1)] == [start, middle, end]


# exponential at 1/4: (1/4)^(1/4) = 1/sqrt(2)
# cosine at 1/3: 1/4 + 3/4 * (1 + cos 60 deg) / 2 = 1/4 + 3/4 * 3/4 = 13/16
# linear at 1/4: 1 - 3/4 * 1/4 = 13/16
# triangular at 1/4: half of the way up, 5/8
@pytest.mark.parametrize(
    ("shape", "progress", "expected"),
    [
        ("exponential", 1 / 4, 1 / math.sqrt(2)),
        ("cosine", 1 / 3, 13 / 16),
        ("linear", 1 / 4, 13 / 16),
        ("triangular", 1 / 4, 5 / 8),
        ("constant", 1 / 4, 1.0),
        ("global-cosine", 1 / 3, 13 / 16),
        ("global-linear", 1 / 4, 13 / 16),
    ],
)
def test_the_learning_rate_follows_its_curve_between_them(
    shape: CycleShape, progress: float, expected: float
) -> None:
    assert plan(shape=shape).lr_at(progress) == pytest.approx(expected, rel=1e-15)


def test_every_shape_has_its_learning_rates_stated_here() -> None:
    assert set(SHAPES) == {
        "exponential",
        "cosine",
        "linear",
        "triangular",
        "constant",
        "global-cosine",
        "global-linear",
    }


@pytest.mark.parametrize(
    "shape", ["exponential", "cosine", "linear", "global-cosine", "global-linear"]
)
def test_a_falling_cycle_falls_at_every_step(shape: CycleShape) -> None:
    rates = [plan(shape=shape).lr_at(progress) for progress in STEPS]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_a_triangular_cycle_rises_to_the_middle_and_is_its_own_mirror_image() -> None:
    rates = [plan(shape="triangular").lr_at(progress) for progress in STEPS]
    rising = rates[: len(rates) // 2 + 1]
    assert all(later > earlier for earlier, later in itertools.pairwise(rising))
    assert rates == rates[::-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cycle_stays_between_its_lowest_and_its_highest(shape: CycleShape) -> None:
    cycle = plan(shape=shape, lr_max=0.1, lr_min=0.003)
    rounding = 1e-15
    assert all(
        0.003 * (1 - rounding) <= cycle.lr_at(progress) <= 0.1 * (1 + rounding)
        for progress in STEPS
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cycle_without_height_is_constant_to_the_bit(shape: CycleShape) -> None:
    flat = plan(shape=shape, lr_max=0.1, lr_min=0.1)
    assert {flat.lr_at(progress) for progress in STEPS} == {0.1}


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "exponential"])
def test_a_cycle_may_end_at_zero(shape: CycleShape) -> None:
    assert plan(shape=shape, lr_min=0.0).lr_at(1) == (1.0 if shape == "constant" else 0.0)


@pytest.mark.parametrize("curve", ["cosine", "linear"])
def test_the_rounds_of_a_global_curve_join_up_to_one(curve: CycleShape) -> None:
    # Four rounds of a quarter each; with progress in eighths all shares are exact in binary.
    one = plan(shape=curve)
    for index in range(4):
        part = plan(shape=f"global-{curve}", run_start=index / 4, run_end=(index + 1) / 4)
        for eighth in range(9):
            assert part.lr_at(eighth / 8) == one.lr_at((index + eighth / 8) / 4)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape.startswith("global-")])
def test_only_a_global_curve_depends_on_the_share_of_the_run(shape: CycleShape) -> None:
    late = plan(shape=shape, run_start=0.5, run_end=0.75)
    assert [late.lr_at(p) for p in STEPS] == [plan(shape=shape).lr_at(p) for p in STEPS]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
def test_progress_outside_the_round_is_refused_with_its_value(
    shape: CycleShape, progress: float
) -> None:
    with pytest.raises(ValueError, match=f"progress must be in .* got {progress}"):
        plan(shape=shape).lr_at(progress)


@pytest.mark.parametrize(
    "changes",
    [
        *({"shape": shape} for shape in SHAPES),
        {"local_epochs": 0, "local_steps": 100},
        {"lr_max": 0.1, "lr_min": 1 / 300, "run_start": 1 / 3, "run_end": 2 / 3},
        {"seed": -(2**62), "proximal_mu": 0.1},
    ],
)
def test_a_plan_comes_back_from_its_record_and_from_the_wire_unchanged(
    changes: dict[str, Any],
) -> None:
    sent = plan(**changes)
    record = sent.to_config_record()
    on_the_wire = ConfigRecord.inflate(record.deflate())
    assert RoundPlan.from_config_record(record) == sent
    assert RoundPlan.from_config_record(on_the_wire) == sent
    assert on_the_wire["plan_id"] == sent.plan_id


def test_reading_a_record_leaves_it_as_it_was() -> None:
    record = plan().to_config_record()
    before = dict(record)
    RoundPlan.from_config_record(record)
    assert dict(record) == before


def refusal(**changes: Any) -> PlanError:
    """Return the error that a site raises for a plan whose record was changed."""
    record = plan().to_config_record()
    for name, value in changes.items():
        if value is None:
            del record[name]
        else:
            record[name] = value
    with pytest.raises(PlanError) as caught:
        RoundPlan.from_config_record(record)
    return caught.value


@pytest.mark.parametrize("name", ["round", "lr_max", "lr_min", "seed"])
def test_a_missing_field_is_refused_by_name(name: str) -> None:
    error = refusal(**{name: None})
    assert error.where == f"round plan, {name}"
    assert "required" in str(error)


def test_a_field_with_a_default_may_not_be_missing_either() -> None:
    # A coordinator always sends every field; one that is absent was lost or never known.
    accepted = []
    for name, field in RoundPlan.model_fields.items():
        record = plan().to_config_record()
        del record[name]
        try:
            RoundPlan.from_config_record(record)
        except PlanError:
            continue
        accepted.append((name, field.default))
    assert accepted == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("momentum", 0.9),
        ("shape", "zigzag"),
        ("round", 0),
        ("round", "3"),
        ("round", 1.0),
        ("local_epochs", -1),
        ("local_steps", -1),
        ("steps_before", -1),
        ("lr_max", 0.0),
        ("lr_max", math.nan),
        ("lr_max", math.inf),
        ("lr_min", -0.1),
        ("lr_min", math.nan),
        ("run_start", -0.1),
        ("run_start", math.nan),
        ("run_end", 1.5),
        ("seed", "seven"),
        ("proximal_mu", -1.0),
        ("proximal_mu", math.inf),
    ],
)
def test_an_unknown_field_or_value_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(**{name: value})
    assert error.where == f"round plan, {name}"
    assert repr(error.got) == repr(value)  # by repr: NaN is not equal to itself


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr_min": 2.0}, "lr_min 2.0 is above lr_max 1.0"),
        ({"local_steps": 5}, "exactly one of local_epochs, local_parts and local_steps"),
        ({"local_parts": 5}, "exactly one of local_epochs, local_parts and local_steps"),
        ({"local_epochs": 0}, "exactly one of local_epochs, local_parts and local_steps"),
        ({"lr_min": 0.0}, "exponential cycle cannot end at lr_min 0"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    error = refusal(**changes)
    assert error.where == "round plan, as a whole"
    assert named in str(error)
    assert error.got is None  # the whole plan would say nothing


@pytest.mark.parametrize(
    "changes", [{"plan_id": "0" * 16}, {"plan_id": None}, {"lr_max": 0.9}, {"seed": 8}]
)
def test_an_id_that_does_not_belong_to_the_fields_is_refused(changes: dict[str, Any]) -> None:
    error = refusal(**changes)
    assert error.where == "round plan, plan_id"
    assert "does not match" in str(error)


def test_the_error_says_what_to_do() -> None:
    for changes in ({"momentum": 0.9}, {"steps_before": None}, {"version": 1}):
        assert "same version of mdc-flower" in str(refusal(**changes))


def test_a_plan_of_another_version_is_refused_as_such() -> None:
    error = refusal(version=1, steps_before=None)
    assert (error.where, error.got, error.expected) == ("round plan, version", 1, "3")
    with pytest.raises(ValidationError, match="version 4 is not supported, expected 3"):
        plan(version=4)


def test_a_recorded_plan_of_an_earlier_version_is_read() -> None:
    sent = plan(lr_max=0.5)
    written = {**sent.model_dump(), "plan_id": sent.plan_id}
    assert RoundPlan.recorded(written) == sent
    for version, newer in ((2, ("local_parts", "parts_before")), (1, ("steps_before",))):
        for name in newer:
            del written[name]
        assert RoundPlan.recorded(written | {"version": version}) == sent
    with pytest.raises(ValidationError):
        RoundPlan.recorded(written | {"version": 4})


CHANGED: dict[str, dict[str, Any]] = {
    "round": {"round": 4},
    "local_epochs": {"local_epochs": 3},
    "local_parts": {"local_parts": 2, "local_epochs": 0},
    "parts_before": {"parts_before": 1},
    "local_steps": {"local_steps": 2, "local_epochs": 0},
    "steps_before": {"steps_before": 1},
    "lr_max": {"lr_max": math.nextafter(1.0, 2.0)},
    "lr_min": {"lr_min": math.nextafter(0.25, 1.0)},
    "shape": {"shape": "cosine"},
    "run_start": {"run_start": 0.125},
    "run_end": {"run_end": 0.5},
    "seed": {"seed": 8},
    "proximal_mu": {"proximal_mu": 0.01},
}


@pytest.mark.parametrize("field", [name for name in RoundPlan.model_fields if name != "version"])
def test_the_id_changes_with_any_field_by_however_little(field: str) -> None:
    assert plan(**CHANGED[field]).plan_id != plan().plan_id


def test_equal_plans_have_one_id_which_no_release_may_change() -> None:
    # A coordinator and a site compute it each for itself. Whoever changes this text changes
    # the plan, and must raise PLAN_VERSION.
    text = (
        '{"local_epochs": 2, "local_parts": 0, "local_steps": 0, "lr_max": 1.0, "lr_min": 0.25, '
        '"parts_before": 0, "proximal_mu": 0.0, "round": 3, "run_end": 1.0, "run_start": 0.0, '
        '"seed": 7, "shape": "exponential", "steps_before": 0, "version": 3}'
    )
    assert plan().plan_id == plan().plan_id == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_plan_counts_in_epochs_or_in_steps_and_the_other_is_zero() -> None:
    common: dict[str, Any] = {"round": 1, "lr_max": 1.0, "lr_min": 0.25, "seed": 7}
    assert RoundPlan(local_epochs=1, **common).local_steps == 0
    assert RoundPlan(local_steps=1, **common).local_epochs == 0


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        plan().lr_max = 2.0


def test_a_plan_that_does_not_fit_together_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"lr_min 2\.0 is above lr_max 1\.0"):
        plan(lr_min=2.0)


# Rounds in parts of an epoch


def parts(number: int, before: int, length: int) -> RoundPlan:
    return plan(round=number, local_epochs=0, local_parts=length, parts_before=before)


GROWN = (100, 200, 400, 500, 800)
"""Two epochs in five rounds."""


def grown() -> list[RoundPlan]:
    ends = list(itertools.accumulate(GROWN))
    rounds = zip([0, *ends[:-1]], GROWN, strict=True)
    return [parts(number, start, length) for number, (start, length) in enumerate(rounds, 1)]


def test_parts_of_an_epoch_become_steps_in_proportion_to_the_steps_of_an_epoch() -> None:
    assert [one.steps(10) for one in grown()] == [1, 2, 4, 5, 8]
    assert [one.steps(20) for one in grown()] == [2, 4, 8, 10, 16]
    # By hand, of 7 steps: 0.7, 2.1, 4.9, 8.4 and 14, each rounded down, but at least one a round.
    assert [one.place(7) for one in grown()] == [0, 1, 2, 4, 8]
    assert [one.steps(7) for one in grown()] == [1, 1, 2, 4, 6]


@pytest.mark.parametrize("per_epoch", [3, 4, 7, 11, 61, 337, 10_007])
def test_every_site_makes_whole_epochs_in_all_and_goes_on_where_it_was(per_epoch: int) -> None:
    steps = [one.steps(per_epoch) for one in grown()]
    assert sum(steps) == 2 * per_epoch
    assert min(steps) >= 1
    assert [one.place(per_epoch) for one in grown()] == [0, *itertools.accumulate(steps)][:-1]


def test_a_site_with_fewer_steps_than_rounds_makes_one_in_each() -> None:
    assert [one.steps(1) for one in grown()] == [1, 1, 1, 1, 1]


def test_rounds_in_epochs_or_steps_have_the_steps_that_they_say() -> None:
    assert (plan(local_epochs=2).steps(5), plan(local_epochs=2).place(5)) == (10, 0)
    in_steps = plan(local_epochs=0, local_steps=3, steps_before=8)
    assert (in_steps.steps(5), in_steps.place(5)) == (3, 8)


def test_a_recorded_plan_has_its_length_as_epochs() -> None:
    assert [epochs_of(one.model_dump()) for one in grown()] == [0.1, 0.2, 0.4, 0.5, 0.8]
    assert [units_of(one.model_dump()) for one in grown()] == list(GROWN)
    assert repr(epochs_of(parts(1, 0, 2000).model_dump())) == "2"
    # Earlier versions wrote no parts.
    earlier = {"local_epochs": 3, "local_steps": 0}
    assert (epochs_of(earlier), units_of(earlier)) == (3, 3)
    assert epochs_of({"local_epochs": 0, "local_steps": 9}) == 0


def test_a_first_round_is_rounded_to_a_part_but_never_to_none() -> None:
    lengths = [parts_in(epochs) for epochs in (0.1, 0.0954, 1.0, 0.001, 0.0001)]
    assert lengths == [100, 95, 1000, 1, 1]
