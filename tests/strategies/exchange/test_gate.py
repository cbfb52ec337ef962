"""The gate: valid replies pass unchanged, all others are rejected."""

import io
import math
import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from strategies.aggregation.averaging import Update
from strategies.common.errors import ConfigError, DataError, DeadlineError, ModelError, PlanError
from strategies.exchange.causes import Cause, FlowerError, cause_of, error_code
from strategies.exchange.gate import (
    ArraySpec,
    Rejection,
    engine_died,
    judge_evaluate,
    judge_train,
    specs_of,
    unfit_model,
)
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    NUM_VALIDATION,
    PLAN_ID,
    REPLY,
    arrays_to_record,
    evaluate_reply_content,
    train_reply_content,
)
from strategies.exchange.metrics import TRAIN_METRICS, VALIDATION_ACCURACY, VALIDATION_LOSS
from strategies.exchange.transport import NO_REPLY
from strategies.storage.lock import LockedError
from tests.strategies.fakes import NODE_IDS, train_metrics

PLAN = "0123456789abcdef"
GLOBAL: dict[str, NDArray[np.generic]] = {
    "weight": np.zeros((2, 3), np.float32),
    "bias": np.zeros((), np.float64),
    "half": np.zeros((4,), np.float16),
    "bn.num_batches_tracked": np.zeros((), np.int64),
}
Spoil = Callable[[RecordDict], None]


def request(message_type: str = MessageType.TRAIN) -> Message:
    return Message(RecordDict(), dst_node_id=NODE_IDS[0], message_type=message_type)


def local_arrays() -> dict[str, NDArray[np.generic]]:
    return {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
        "bias": np.array(1 / 3),
        "half": np.array([0.0, -1.5, 65504.0, 2.0**-24], np.float16),
        "bn.num_batches_tracked": np.array(12),
    }


def good_content() -> RecordDict:
    return train_reply_content(arrays_to_record(local_arrays()), train_metrics(40), PLAN)


def judge(content: RecordDict) -> Update | Rejection:
    return judge_train(Message(content, reply_to=request()), "site-b", PLAN, GLOBAL)


def npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=array)
    return buffer.getvalue()


def with_header(header: str) -> bytes:
    """Return a numpy file (format version 1) with this header and the data of ``weight``."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(24)


def test_a_good_reply_is_the_update_that_was_sent() -> None:
    update = judge(good_content())
    assert isinstance(update, Update)
    assert (update.site, update.num_examples) == ("site-b", 40)
    assert update.metrics == train_metrics(40)
    sent = local_arrays()
    assert list(update.arrays) == list(sent)
    for name, array in update.arrays.items():
        assert (array.dtype, array.shape) == (sent[name].dtype, sent[name].shape), name
        assert array.tobytes() == sent[name].tobytes(), name


def test_a_good_reply_is_still_good_after_the_wire() -> None:
    content = good_content()
    record = content.array_records[ARRAYS]
    for name, array in record.items():
        record[name] = Array.inflate(array.deflate(), array.children)
    content.metric_records[METRICS] = MetricRecord.inflate(
        content.metric_records[METRICS].deflate()
    )
    assert isinstance(judge(content), Update)


MASK: dict[str, NDArray[np.generic]] = {
    "weight": np.ones(2, np.float32),
    "mask": np.array([0.0, -np.inf, np.inf], np.float32),
}


def judge_masked(mask: list[float], bound: float = 0.0) -> Update | Rejection:
    arrays: dict[str, NDArray[np.generic]] = {
        "weight": np.array([1.0, 1.5], np.float32),
        "mask": np.array(mask, np.float32),
    }
    content = train_reply_content(arrays_to_record(arrays), train_metrics(40), PLAN)
    return judge_train(Message(content, reply_to=request()), "site-b", PLAN, MASK, bound)


@pytest.mark.parametrize("bound", [0.0, 0.5])
def test_a_constant_that_is_not_finite_counts_if_it_comes_back_as_it_was_sent(bound: float) -> None:
    update = judge_masked([0.0, -math.inf, math.inf], bound)
    assert isinstance(update, Update)
    assert update.arrays["mask"].tobytes() == MASK["mask"].tobytes()


@pytest.mark.parametrize(
    "mask", [[0.0, math.inf, -math.inf], [1.0, -math.inf, math.inf], [0.0, -math.inf, math.nan]]
)
def test_any_other_array_that_is_not_finite_does_not_count(mask: list[float]) -> None:
    verdict = judge_masked(mask)
    assert isinstance(verdict, Rejection)
    assert verdict.reason == "array 'mask': 2 of 3 values are not finite"


def test_beside_a_constant_that_is_not_finite_the_bound_of_the_update_holds() -> None:
    # The weights have moved by 0.5, of a norm of sqrt(2).
    verdict = judge_masked([0.0, -math.inf, math.inf], 0.3)
    assert isinstance(verdict, Rejection)
    assert verdict.reason.startswith("update: its norm is 0.354 times")


@pytest.mark.parametrize("num_examples", [1, 2**53])
def test_from_one_example_to_the_largest_exact_weight_every_count_is_good(
    num_examples: int,
) -> None:
    content = good_content()
    content.metric_records[METRICS][NUM_EXAMPLES] = num_examples
    update = judge(content)
    assert isinstance(update, Update)
    assert update.num_examples == num_examples


ALL_METRICS = train_metrics(40, **{NUM_VALIDATION: 4, VALIDATION_LOSS: 0.5, VALIDATION_ACCURACY: 1})


def test_every_metric_there_is_may_be_sent() -> None:
    assert set(ALL_METRICS) == TRAIN_METRICS
    content = train_reply_content(arrays_to_record(local_arrays()), ALL_METRICS, PLAN)
    update = judge(content)
    assert isinstance(update, Update)
    assert update.metrics == ALL_METRICS


@pytest.mark.parametrize("name", sorted(TRAIN_METRICS - {NUM_EXAMPLES}))
def test_every_metric_but_the_number_of_examples_may_be_kept_back(name: str) -> None:
    metrics = {other: value for other, value in ALL_METRICS.items() if other != name}
    update = judge(train_reply_content(arrays_to_record(local_arrays()), metrics, PLAN))
    assert isinstance(update, Update)
    assert update.metrics == metrics


def test_the_number_of_examples_alone_is_enough() -> None:
    update = judge(train_reply_content(arrays_to_record(local_arrays()), {NUM_EXAMPLES: 7}, PLAN))
    assert isinstance(update, Update)
    assert (update.num_examples, update.metrics) == (7, {NUM_EXAMPLES: 7})


def test_an_update_has_the_arrays_in_the_global_models_order() -> None:
    content = good_content()
    backwards = dict(reversed(local_arrays().items()))
    content.array_records[ARRAYS] = arrays_to_record(backwards)
    update = judge(content)
    assert isinstance(update, Update)
    assert list(update.arrays) == list(GLOBAL)


def test_a_spec_is_written_as_a_person_would() -> None:
    assert str(ArraySpec((10, 64), "float32")) == "float32[10, 64]"
    assert specs_of(GLOBAL)["bias"] == ArraySpec((), "float64")


def no_reply_record(content: RecordDict) -> None:
    del content.config_records[REPLY]


def reply_record_without_plan_id(content: RecordDict) -> None:
    content.config_records[REPLY] = ConfigRecord()


def another_plan(content: RecordDict) -> None:
    content.config_records[REPLY] = ConfigRecord({PLAN_ID: "fedcba9876543210"})


def no_metrics(content: RecordDict) -> None:
    del content.metric_records[METRICS]


def no_arrays(content: RecordDict) -> None:
    del content.array_records[ARRAYS]


def without_metric(name: str) -> Spoil:
    def spoil(content: RecordDict) -> None:
        del content.metric_records[METRICS][name]

    return spoil


def with_metric(name: str, value: float | list[float]) -> Spoil:
    def spoil(content: RecordDict) -> None:
        content.metric_records[METRICS][name] = value

    return spoil


def without_array(name: str) -> Spoil:
    def spoil(content: RecordDict) -> None:
        del content.array_records[ARRAYS][name]

    return spoil


def with_array(name: str, array: NDArray[np.generic]) -> Spoil:
    def spoil(content: RecordDict) -> None:
        content.array_records[ARRAYS][name] = Array(np.asarray(array))

    return spoil


def with_weight_data(data: bytes, stype: str = "numpy.ndarray") -> Spoil:
    """Send these bytes with the correct header for ``weight``."""

    def spoil(content: RecordDict) -> None:
        content.array_records[ARRAYS]["weight"] = Array("float32", (2, 3), stype, data)

    return spoil


def with_weight_header(dtype: str, shape: tuple[int, ...]) -> Spoil:
    """Send the correct data for ``weight`` with this header."""
    data = npy(np.zeros((2, 3), np.float32))

    def spoil(content: RecordDict) -> None:
        content.array_records[ARRAYS]["weight"] = Array(dtype, shape, "numpy.ndarray", data)

    return spoil


def one_value(value: float, dtype: str = "float32") -> NDArray[np.generic]:
    array = np.zeros((2, 3), dtype)
    array[1, 2] = value
    return array


def case(name: str, spoil: Spoil, *reason: str) -> object:
    return pytest.param(spoil, reason, id=name)


BAD_REPLIES = [
    case("no reply record", no_reply_record, PLAN_ID, "got None", PLAN),
    case("no plan id", reply_record_without_plan_id, PLAN_ID, "got None", PLAN),
    case("another plan", another_plan, PLAN_ID, "'fedcba9876543210'", PLAN),
    case("no metrics", no_metrics, "metrics", "missing"),
    case("missing examples", without_metric(NUM_EXAMPLES), "'num-examples' is missing"),
    case("extra metric", with_metric("num-patients", 3), "'num-patients'", "may send"),
    case("metric of no name", with_metric("", 0.5), "'' is not among"),
    case("zero validation examples", with_metric(NUM_VALIDATION, 0), f"'{NUM_VALIDATION}' is 0"),
    case("half a validation example", with_metric(NUM_VALIDATION, 0.5), "is 0.5", "a count"),
    case("NaN validation", with_metric(VALIDATION_LOSS, math.nan), "'validation-loss' is nan"),
    case("list metric", with_metric("train-loss", [0.5]), "'train-loss' is a list"),
    case("NaN metric", with_metric("train-loss", math.nan), "'train-loss' is nan"),
    case("infinite metric", with_metric("train-loss", -math.inf), "'train-loss' is -inf"),
    case("infinite examples", with_metric(NUM_EXAMPLES, math.inf), "'num-examples' is inf"),
    case("huge metric", with_metric("num-steps", 10**400), "'num-steps'"),
    case("zero examples", with_metric(NUM_EXAMPLES, 0), "'num-examples' is 0", "> 0"),
    case("negative examples", with_metric(NUM_EXAMPLES, -5), "'num-examples' is -5"),
    case("half an example", with_metric(NUM_EXAMPLES, 0.5), "'num-examples' is 0.5"),
    case("fractional examples", with_metric(NUM_EXAMPLES, 1.5), "'num-examples' is 1.5"),
    case("examples beyond float64", with_metric(NUM_EXAMPLES, 2**53 + 1), "'num-examples' is"),
    case("absurdly many examples", with_metric(NUM_EXAMPLES, 1e308), "'num-examples' is 1e+308"),
    case("no arrays", no_arrays, "'weight' is missing", "4 of 4"),
    case("missing array", without_array("bias"), "'bias' is missing", "1 of 4"),
    case("extra array", with_array("patients", np.zeros(3)), "'patients' is not in the global"),
    case(
        "wrong shape",
        with_array("weight", np.zeros((3, 2), np.float32)),
        "'weight'",
        "got float32[3, 2]",
        "expected float32[2, 3]",
    ),
    case("scalar became one element", with_array("bias", np.zeros(1)), "'bias'", "float64[1]"),
    case(
        "wrong dtype",
        with_array("weight", np.zeros((2, 3), np.float64)),
        "'weight'",
        "got float64[2, 3]",
        "expected float32[2, 3]",
    ),
    case("wrong byte order", with_array("weight", np.zeros((2, 3), ">f4")), "'weight'", ">f4"),
    case("NaN", with_array("weight", one_value(math.nan)), "'weight': 1 of 6", "not finite"),
    case("infinity", with_array("weight", one_value(math.inf)), "'weight': 1 of 6", "not finite"),
    case("NaN in a scalar", with_array("bias", np.array(math.nan)), "'bias': 1 of 1"),
    case("NaN in float16", with_array("half", np.full(4, math.nan, np.float16)), "'half': 4 of 4"),
    case("no data", with_weight_data(b""), "'weight' cannot be decoded"),
    case("undecodable data", with_weight_data(b"\x00" * 200), "'weight' cannot be decoded"),
    case(
        "cut data",
        with_weight_data(npy(np.zeros((2, 3), np.float32))[:-1]),
        "'weight' cannot be decoded",
    ),
    case("a pickle", with_weight_data(pickle.dumps([1.0])), "'weight' cannot be decoded"),
    case(
        "another serialization",
        with_weight_data(npy(np.zeros((2, 3), np.float32)), stype="pickle"),
        "'weight' cannot be decoded",
    ),
    case("no zip file", with_weight_data(b"PK\x03\x04" + bytes(60)), "'weight'"),
    case("a zip file", with_weight_data(npz(np.zeros((2, 3), np.float32))), "'weight'"),
    case("a header cut short", with_weight_data(with_header("{'descr': (")), "'weight'"),
    case(
        "a header that claims petabytes",
        with_weight_data(
            with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000,)}")
        ),
        "'weight'",
    ),
    case(
        "right header over another shape",
        with_weight_data(npy(np.zeros((3, 2), np.float32))),
        "'weight'",
        "got float32[3, 2]",
        "expected float32[2, 3]",
    ),
    case(
        "right header over another dtype",
        with_weight_data(npy(np.zeros((2, 3), np.int32))),
        "'weight'",
        "got int32[2, 3]",
        "expected float32[2, 3]",
    ),
    case(
        "another shape claimed over right data",
        with_weight_header("float32", (3, 2)),
        "'weight'",
        "got float32[3, 2]",
    ),
    case(
        "another dtype claimed over right data",
        with_weight_header("float64", (2, 3)),
        "'weight'",
        "got float64[2, 3]",
    ),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD_REPLIES)
def test_a_bad_reply_is_rejected_with_its_site_and_what_is_wrong(
    spoil: Spoil, reason: tuple[str, ...]
) -> None:
    content = good_content()
    spoil(content)
    verdict = judge(content)
    assert isinstance(verdict, Rejection)
    assert verdict.site == "site-b"
    assert [part for part in reason if part not in verdict.reason] == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Error(2, "CUDA out of memory"), "the site failed: CUDA out of memory"),
        (Error(2, "OSError: full\n  in save()"), "the site failed: OSError: full"),
        (Error(2), "the site failed: code 2"),
    ],
)
def test_a_site_that_failed_is_rejected_with_its_own_words_all_of_them_in_the_detail(
    error: Error, reason: str
) -> None:
    for judged in (
        judge_train(Message(error, reply_to=request()), "site-b", PLAN, GLOBAL),
        judge_evaluate(Message(error, reply_to=request(MessageType.EVALUATE)), "site-b"),
    ):
        assert judged == Rejection("site-b", Cause.SITE_FAILED, reason, error.reason or "")


def test_what_is_wrong_with_a_reply_that_is_no_error_needs_no_detail() -> None:
    assert judge(RecordDict()) == Rejection(
        "site-b",
        Cause.WRONG_PLAN,
        f"{PLAN_ID}: got None, expected {PLAN!r}, the plan of this round",
    )


# The norm of an update. The global model is (3, 4), of norm 5, beside a counter.

THREE_FOUR: dict[str, NDArray[np.generic]] = {
    "w": np.array([3.0, 4.0], np.float32),
    "running_var": np.zeros(1, np.float32),
    "n": np.array(7),
}


def judge_update(
    bound: float, before: dict[str, NDArray[np.generic]] = THREE_FOUR, **arrays: object
) -> Update | Rejection:
    """Check an update that changes these arrays."""
    after = {name: np.asarray(arrays.get(name, a), a.dtype) for name, a in before.items()}
    content = train_reply_content(arrays_to_record(after), train_metrics(40), PLAN)
    return judge_train(Message(content, reply_to=request()), "site-b", PLAN, before, bound)


# (3, 4) + (0, 5) moves by 5 of 5: once the model's norm.
@pytest.mark.parametrize(
    ("bound", "w", "fits"),
    [
        (1.0, [3.0, 9.0], True),
        (1.0, [3.0, np.nextafter(np.float32(9), np.float32(10))], False),
        (np.nextafter(1.0, 0.0), [3.0, 9.0], False),
        (2.0, [-3.0, -4.0], True),  # turned round: a distance of 10
        (1.9, [-3.0, -4.0], False),
        (1e-9, [3.0, 4.0], True),  # unchanged
        (1e9, [3e9, 4e9], True),  # just below
        (1e9, [4e9, 4e9], False),
        (0.0, [3e38, -3e38], True),  # no bound
    ],
)
def test_an_update_counts_up_to_the_bound_of_its_norm(
    bound: float, w: list[float], fits: bool
) -> None:
    assert isinstance(judge_update(bound, w=w), Update) is fits


def test_an_update_that_is_too_large_is_named_with_its_norm_and_the_bound() -> None:
    verdict = judge_update(0.5, w=[3.0, 9.0])
    assert isinstance(verdict, Rejection)
    assert verdict.reason == (
        "update: its norm is 1 times the global model's, max-relative-update is 0.5"
    )


def test_buffers_are_part_of_the_norm() -> None:
    assert isinstance(judge_update(10.0, running_var=[50.0]), Update)
    verdict = judge_update(10.0, running_var=[1e30])
    assert isinstance(verdict, Rejection)
    assert "its norm is 2e+29 times" in verdict.reason


def test_integers_are_no_part_of_the_norm() -> None:
    assert isinstance(judge_update(1e-9, n=2**62), Update)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_named_as_that_and_not_as_too_large(value: float) -> None:
    verdict = judge_update(1.0, w=[3.0, value])
    assert isinstance(verdict, Rejection)
    assert "'w': 1 of 2 values are not finite" in verdict.reason
    assert verdict.cause is Cause.NOT_FINITE


def test_a_variance_below_zero_costs_the_site_its_update() -> None:
    content = train_reply_content(
        arrays_to_record({**THREE_FOUR, "running_var": np.array([-1.0], np.float32)}),
        train_metrics(40),
        PLAN,
    )
    reply = Message(content, reply_to=request())
    verdict = judge_train(reply, "site-b", PLAN, THREE_FOUR, variances={"running_var"})
    assert isinstance(verdict, Rejection)
    assert (verdict.cause, verdict.reason) == (
        Cause.OUT_OF_BOUNDS,
        "array 'running_var': 1 of 1 values are below 0",
    )
    assert isinstance(judge_train(reply, "site-b", PLAN, THREE_FOUR), Update)


@pytest.mark.parametrize(
    ("after", "state", "reason"),
    [
        ({}, {}, None),
        ({"w": np.array([3.0, np.inf], np.float32)}, {}, "'w': 1 of 2 values are not finite"),
        ({}, {"momentum/w": np.array([np.nan])}, "'momentum/w': 1 of 1 values are not finite"),
        (
            {"running_var": np.array([-1.0], np.float32)},
            {},
            "'running_var': 1 of 1 values are below 0",
        ),
        ({"w": np.array([3.0, 4.0])}, {}, "'w': got float64[2], expected float32[2]"),
    ],
)
def test_a_new_global_model_is_judged_like_a_reply(
    after: dict[str, NDArray[np.generic]],
    state: dict[str, NDArray[np.generic]],
    reason: str | None,
) -> None:
    found = unfit_model(THREE_FOUR, {**THREE_FOUR, **after}, state, {"running_var"})
    assert found == (f"array {reason}" if reason else None)


ALL_ZERO: dict[str, NDArray[np.generic]] = {"w": np.zeros(2, np.float32)}


def test_from_a_model_of_zeros_every_step_is_too_large_but_none_at_all() -> None:
    assert isinstance(judge_update(1.0, ALL_ZERO), Update)
    verdict = judge_update(1e300, ALL_ZERO, w=[1e-30, 0.0])
    assert isinstance(verdict, Rejection)
    assert "its norm is inf times" in verdict.reason


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("size", [1.0, 1e200])
def test_an_update_too_large_for_the_arithmetic_is_too_large(size: float) -> None:
    before: dict[str, NDArray[np.generic]] = {"w": np.array([size])}
    assert isinstance(judge_update(1e9, before, w=[-1e300]), Rejection)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (no_reply_record, Cause.WRONG_PLAN),
        (without_metric(NUM_EXAMPLES), Cause.MISFIT),
        (without_array("bias"), Cause.MISFIT),
        (with_array("weight", np.zeros((3, 2), np.float32)), Cause.MISFIT),
        (with_weight_data(b""), Cause.MISFIT),
        (with_metric("train-loss", math.nan), Cause.NOT_FINITE),
        (with_metric("train-loss", -math.inf), Cause.NOT_FINITE),
        (with_array("weight", one_value(math.nan)), Cause.NOT_FINITE),
        (with_metric(NUM_EXAMPLES, 0), Cause.OUT_OF_BOUNDS),
        (with_metric("num-steps", 2**53 + 1), Cause.OUT_OF_BOUNDS),
    ],
)
def test_what_is_wrong_has_a_code_that_does_not_depend_on_the_words(
    spoil: Spoil, cause: Cause
) -> None:
    content = good_content()
    spoil(content)
    verdict = judge(content)
    assert isinstance(verdict, Rejection)
    assert verdict.cause is cause


def test_an_update_beyond_the_bound_has_its_code() -> None:
    verdict = judge_update(0.5, w=[3.0, 9.0])
    assert isinstance(verdict, Rejection)
    assert verdict.cause is Cause.OUT_OF_BOUNDS


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConfigError("x"), Cause.CONFIG),
        (DataError("x"), Cause.DATA),
        (ModelError("x"), Cause.MODEL),
        (PlanError("x"), Cause.PLAN),
        (DeadlineError("x"), Cause.LATE),
        (LockedError("x"), Cause.SITE_FAILED),
        (OSError("array 'w': 1 of 6 values are not finite"), Cause.SITE_FAILED),
    ],
)
def test_a_sites_error_says_its_kind_by_its_number_alone(error: Exception, cause: Cause) -> None:
    reply = Message(Error(error_code(error), "in no words known here"), reply_to=request())
    verdict = judge_train(reply, "site-b", PLAN, GLOBAL)
    assert isinstance(verdict, Rejection)
    assert verdict.cause is cause


def test_flowers_error_codes_are_flowers() -> None:
    assert {code.name: int(code) for code in FlowerError} == {
        "UNKNOWN": ErrorCode.UNKNOWN,
        "RAISED": ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
        "MESSAGE_UNAVAILABLE": ErrorCode.MESSAGE_UNAVAILABLE,
        "REPLY_UNAVAILABLE": ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        "NODE_UNAVAILABLE": ErrorCode.NODE_UNAVAILABLE,
        "INVALID_APP": ErrorCode.INVALID_FAB,
    }
    assert NO_REPLY == ErrorCode.NODE_UNAVAILABLE


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (ErrorCode.NODE_UNAVAILABLE, Cause.NO_REPLY),
        (ErrorCode.INVALID_FAB, Cause.APP_REFUSED),
        (ErrorCode.CLIENT_APP_CRASHED, Cause.SITE_FAILED),
        (12_345, Cause.SITE_FAILED),
    ],
)
def test_flowers_own_error_codes_have_a_cause_too(code: int, cause: Cause) -> None:
    assert cause_of(code) is cause


RAY = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly'>"


@pytest.mark.parametrize(
    ("error", "died"),
    [
        (Error(ErrorCode.UNKNOWN, RAY), True),
        (Error(ErrorCode.UNKNOWN, "<class 'ray.exceptions.OutOfMemoryError'>:<'...'>"), True),
        (Error(ErrorCode.UNKNOWN, "<class 'ValueError'>:<'ray.exceptions.'>"), False),
        (Error(ErrorCode.UNKNOWN), False),
        # A site's own code cannot end the run by what it raises.
        (Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, RAY), False),
        (Error(ErrorCode.NODE_UNAVAILABLE, RAY), False),
    ],
)
def test_only_an_error_of_rays_own_says_that_the_engine_died(error: Error, died: bool) -> None:
    assert engine_died(Message(error, reply_to=request())) is died


def test_a_reply_with_content_never_says_that_the_engine_died() -> None:
    assert not engine_died(Message(good_content(), reply_to=request()))


def test_a_reply_with_nothing_in_it_is_rejected() -> None:
    assert isinstance(judge(RecordDict()), Rejection)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_whatever_the_bytes_of_an_array_the_gate_returns_a_verdict() -> None:
    # One to six bytes of the header of a good file replaced, 400 times, always the same ones.
    good = npy(np.zeros((2, 3), np.float32))
    chance = random.Random(0)
    for _ in range(400):
        data = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(128)] = chance.choice(b"()',{}[]-9 \"\\\n\x00\xff")
        content = good_content()
        with_weight_data(bytes(data))(content)
        assert isinstance(judge(content), Update | Rejection), bytes(data)


GOOD_EVALUATION: dict[str, float] = {
    NUM_VALIDATION: 4,
    VALIDATION_LOSS: 0.5,
    VALIDATION_ACCURACY: 0.75,
}


def judge_evaluation(metrics: dict[str, float]) -> Update | Rejection:
    asked = request(MessageType.EVALUATE)
    return judge_evaluate(Message(evaluate_reply_content(metrics), reply_to=asked), "site-b")


@pytest.mark.parametrize("withheld", [set(), {VALIDATION_LOSS}, set(GOOD_EVALUATION)])
def test_a_good_evaluation_is_what_was_sent(withheld: set[str]) -> None:
    sent = {name: value for name, value in GOOD_EVALUATION.items() if name not in withheld}
    assert judge_evaluation(sent) == Update("site-b", int(sent.get(NUM_VALIDATION, 0)), {}, sent)


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({**GOOD_EVALUATION, "auc": 0.9}, "'auc' is not among"),
        ({**GOOD_EVALUATION, NUM_EXAMPLES: 4}, "'num-examples' is not among"),
        ({**GOOD_EVALUATION, VALIDATION_LOSS: math.nan}, "'validation-loss' is nan"),
        ({**GOOD_EVALUATION, NUM_VALIDATION: 0}, "'num-validation-examples' is 0"),
        ({**GOOD_EVALUATION, NUM_VALIDATION: 4.0}, "'num-validation-examples' is 4.0"),
    ],
)
def test_a_bad_evaluation_is_rejected_by_name(metrics: dict[str, float], reason: str) -> None:
    verdict = judge_evaluation(metrics)
    assert isinstance(verdict, Rejection)
    assert verdict.site == "site-b"
    assert reason in verdict.reason
