"""The gate: checks every reply before it is averaged.

No reply is trusted. A mistake or an attack by one site must cost the round only that site's update.
The gate never raises on a bad reply; it returns a `Rejection` with the reason.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from numpy.typing import NDArray

from strategies.aggregation.averaging import Arrays, Update
from strategies.common.blocks import all_finite
from strategies.exchange.causes import Cause, FlowerError, cause_of
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    NUM_VALIDATION,
    PLAN_ID,
    REPLY,
)
from strategies.exchange.metrics import ALWAYS, Metric, SiteMetrics, Value
from strategies.exchange.records import records_of, view_of
from strategies.method.local_work import relative_change

COUNTS = frozenset({NUM_EXAMPLES, NUM_VALIDATION})
"""Metrics that serve as weights for other metrics."""

TOLERANCE = 1e-6
"""How far a metric's value may be outside its range, relative to the value."""

MAX_COUNT = 2**53
"""Largest count that float64 represents exactly; weights are float64."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype that an array must have."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """Return the form used in messages, such as ``float32[10, 64]``."""
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Rejection:
    """A reply that does not count.

    Attributes
    ----------
    site : str
        The site that sent it.
    cause : Cause
        Why it does not count, as a code.
    reason : str
        Why it does not count, as one line of text.
    detail : str
        The error that the site reported: type, message, last lines of the traceback.
    is_failure : bool
        Whether the reply is one of the few failures that a site may have in a round.
    """

    site: str
    cause: Cause
    reason: str
    detail: str = ""
    is_failure: bool = True


def specs_of(arrays: Arrays) -> dict[str, ArraySpec]:
    """Return the shape and dtype that each array of a reply must have."""
    return {name: ArraySpec(array.shape, str(array.dtype)) for name, array in arrays.items()}


class _UnfitError(Exception):
    """Carries cause and reason out of the checks; never raised to callers of this module."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause

    def rejection(self, reply: Message, site: str) -> "Rejection":
        """Return the error as a rejection of the reply."""
        return Rejection(site, self.cause, str(self), _detail(reply))


def judge_train(
    reply: Message,
    site: str,
    plan_id: str,
    before: Arrays,
    max_relative_update: float = 0.0,
    variances: Collection[str] = (),
    metrics: SiteMetrics | None = None,
) -> Update | Rejection:
    """Check a train reply.

    A reply is accepted only if all of these hold:

    - It answers the plan of this round.
    - Its arrays have the names, shapes and dtypes of the global model ``before``. All values are
      finite and no variance is below 0. An array that is not finite in the global model (a mask of
      ``-inf``) must come back unchanged.
    - Its metrics are all among those that the job lets leave a site, finite and within their range,
      with more than 0 examples.
    - Its model is not too far from the global model.

    Parameters
    ----------
    reply
        The message from the site.
    site
        Name of the site.
    plan_id
        Id of the round's plan.
    before
        The global model that the site received.
    max_relative_update
        Largest ``||local - global|| / ||global||`` over all finite float arrays, including
        buffers; 0 for no bound.
    variances
        Names of the arrays that hold variances.
    metrics
        The metrics that a site may send; by default those of a classification.
    """
    known = metrics or SiteMetrics()
    try:
        _check_no_error(reply)
        _check_plan_id(reply, plan_id)
        sent = _metrics(reply, {NUM_EXAMPLES}, {**_PLAIN, **known.training, **known.validation})
        _check_sums(sent, known)
        arrays = _arrays(records_of(reply.content, ArrayRecord).get(ARRAYS), before)
        _check_variances(arrays, variances)
        if max_relative_update:
            _check_norm(before, arrays, max_relative_update)
    except _UnfitError as unfit:
        return unfit.rejection(reply, site)
    return Update(site, _count(sent[NUM_EXAMPLES]), arrays, sent)


def judge_statistics(
    reply: Message, site: str, plan_id: str, expected: Arrays, layers: Mapping[str, str]
) -> Update | Rejection:
    """Check a reply with the statistics of a site's BatchNorm layers.

    A reply is accepted only if all of these hold:

    - It belongs to the model ``plan_id``.
    - Its arrays have the names, shapes and dtypes of ``expected``. All values are finite, no
      variance is below 0, and no squared mean overflows its dtype.
    - Its only metric is the number of examples, which is more than 0.

    Parameters
    ----------
    reply
        The message from the site.
    site
        Name of the site.
    plan_id
        Id of the model that the site received.
    expected
        The statistics in that model.
    layers
        Maps the name of each mean to the name of its variance.
    """
    try:
        _check_no_error(reply)
        _check_plan_id(reply, plan_id)
        sent = _metrics(reply, {NUM_EXAMPLES}, {NUM_EXAMPLES: None})
        arrays = _arrays(records_of(reply.content, ArrayRecord).get(ARRAYS), expected)
        for mean, variance in layers.items():
            _check_statistics(mean, arrays[mean], variance, arrays[variance])
    except _UnfitError as unfit:
        return unfit.rejection(reply, site)
    return Update(site, _count(sent[NUM_EXAMPLES]), arrays, sent)


def judge_evaluate(
    reply: Message, site: str, metrics: SiteMetrics | None = None
) -> Update | Rejection:
    """Check an evaluate reply: only validation metrics, and more than 0 examples.

    The update has no arrays. Its number of examples is the number of validation examples, 0 if the
    site has none. ``metrics`` are the metrics that a site may send; by default those of a
    classification.
    """
    known = metrics or SiteMetrics()
    try:
        _check_no_error(reply)
        sent = _metrics(reply, frozenset(), {NUM_VALIDATION: None, **known.validation})
        _check_sums(sent, known)
    except _UnfitError as unfit:
        return unfit.rejection(reply, site)
    return Update(site, _count(sent.get(NUM_VALIDATION, 0)), {}, sent)


def unfit_model(
    before: Arrays, after: Arrays, state: Arrays, variances: Collection[str] = ()
) -> str | None:
    """Return why a new global model cannot be used; None if it can.

    Parameters
    ----------
    before
        The global model before the round. The new model must have the same arrays.
    after
        The new global model.
    state
        The new state of the outer optimizer, which must be finite too.
    variances
        Names of the arrays that hold variances.
    """
    try:
        for name, spec in specs_of(before).items():
            got = ArraySpec(after[name].shape, str(after[name].dtype))
            if got != spec:
                raise _UnfitError(Cause.MISFIT, f"array {name!r}: got {got}, expected {spec}")
        for name, array in after.items():
            _check_finite(name, array, before[name])
        for name, array in state.items():
            _check_finite(name, array, None)
        _check_variances(after, variances)
    except _UnfitError as unfit:
        return str(unfit)
    return None


def engine_died(reply: Message) -> bool:
    """Return whether a reply reports that a simulation worker died, not that a site failed.

    Flower's pool of Ray actors keeps handing out a dead actor. From then on, every site that gets
    this actor fails.
    """
    if not reply.has_error() or reply.error.code != FlowerError.UNKNOWN:
        return False
    return (reply.error.reason or "").startswith("<class 'ray.exceptions.")


def _detail(reply: Message) -> str:
    return (reply.error.reason or "") if reply.has_error() else ""


def _check_no_error(reply: Message) -> None:
    if reply.has_error():
        cause, reason = cause_of(reply.error.code), reply.error.reason or f"code {reply.error.code}"
        said = "" if cause is Cause.NO_REPLY else "the site failed: "
        raise _UnfitError(cause, f"{said}{reason.splitlines()[0]}")


def _check_plan_id(reply: Message, plan_id: str) -> None:
    record = records_of(reply.content, ConfigRecord).get(REPLY)
    got = record.get(PLAN_ID) if record is not None else None
    if got != plan_id:
        raise _UnfitError(
            Cause.WRONG_PLAN,
            f"{PLAN_ID}: got {got!r}, expected {plan_id!r}, the plan of this round",
        )


def _check_norm(before: Arrays, after: Arrays, bound: float) -> None:
    floats = frozenset(
        name
        for name in before
        if np.issubdtype(before[name].dtype, np.floating) and all_finite(before[name])
    )
    got = relative_change(before, after, floats)
    if not got <= bound:  # also true if float64 overflowed and the norm is NaN
        raise _UnfitError(
            Cause.OUT_OF_BOUNDS,
            f"update: its norm is {got:.3g} times the global model's, max-relative-update is "
            f"{bound:g}",
        )


def _check_variances(arrays: Mapping[str, NDArray[Any]], variances: Collection[str]) -> None:
    for name in variances:
        if count := int((arrays[name] < 0).sum()):
            size = arrays[name].size
            raise _UnfitError(
                Cause.OUT_OF_BOUNDS, f"array {name!r}: {count} of {size} values are below 0"
            )


def _check_statistics(
    mean_name: str, mean: NDArray[Any], variance_name: str, variance: NDArray[Any]
) -> None:
    _check_variances({variance_name: variance}, [variance_name])
    # The pooled variance over the sites is at most the largest of these sums.
    with np.errstate(over="ignore"):
        largest = np.square(mean) + variance
    if not np.isfinite(largest).all():
        raise _UnfitError(
            Cause.NOT_FINITE,
            f"array {mean_name!r}: the pooled variance would overflow {mean.dtype}",
        )


_PLAIN: Mapping[str, Metric | None] = dict.fromkeys((*ALWAYS, NUM_VALIDATION))


def _metrics(
    reply: Message, required: Collection[str], allowed: Mapping[str, Metric | None]
) -> dict[str, Value]:
    """Return a reply's metrics; each must be allowed, and be what its `Metric` says."""
    record: MetricRecord = records_of(reply.content, MetricRecord).get(METRICS, MetricRecord())
    if missing := sorted(set(required) - set(record)):
        raise _UnfitError(Cause.MISFIT, f"metrics: {missing[0]!r} is missing")
    if extra := sorted(set(record) - set(allowed)):
        raise _UnfitError(
            Cause.MISFIT, f"metrics: {extra[0]!r} is not among the metrics a site may send"
        )
    return {name: _metric(name, record[name], allowed[name]) for name in sorted(record)}


def _metric(
    name: str, value: int | float | list[int] | list[float], metric: Metric | None
) -> Value:
    size = metric.size if metric is not None else 0
    if isinstance(value, list):
        if not size:
            raise _UnfitError(Cause.MISFIT, f"metrics: {name!r} is a list, expected one number")
        if len(value) != size:
            raise _UnfitError(
                Cause.MISFIT, f"metrics: {name!r} has {len(value)} numbers, expected {size}"
            )
    elif size:
        raise _UnfitError(
            Cause.MISFIT, f"metrics: {name!r} is one number, expected a list of {size}"
        )
    for number in value if isinstance(value, list) else [value]:
        _check_number(name, number)
    if name in COUNTS and not (isinstance(value, int) and value >= 1):
        raise _UnfitError(
            Cause.OUT_OF_BOUNDS, f"metrics: {name!r} is {value}, expected a count > 0"
        )
    sent: Value = [float(number) for number in value] if isinstance(value, list) else value
    if metric is not None:
        _check_range(name, metric, sent)
    return sent


def _check_sums(sent: Mapping[str, Value], known: SiteMetrics) -> None:
    """Reject validation sums that the claimed number of examples cannot have."""
    count = _count(sent.get(NUM_VALIDATION, 0))
    for name, metric in known.validation.items():
        value = sent.get(name)
        if not (metric.size and count and isinstance(value, list)):
            continue
        least, most = (bound * count for bound in metric.per_example)
        for number in value:
            if number < least or number > most:
                raise _UnfitError(
                    Cause.OUT_OF_BOUNDS,
                    f"metrics: {name!r} has a sum of {number:g}, expected {least:g} to {most:g} "
                    f"for {count} examples",
                )


def _check_number(name: str, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _UnfitError(Cause.NOT_FINITE, f"metrics: {name!r} is {value}")
    if isinstance(value, int) and abs(value) > MAX_COUNT:
        raise _UnfitError(
            Cause.OUT_OF_BOUNDS,
            f"metrics: {name!r} is {value}, expected at most {MAX_COUNT} in absolute value",
        )


def _check_range(name: str, metric: Metric, sent: Value) -> None:
    """Reject a value outside its metric's range; sums of too few examples may give no value."""
    try:
        value = metric.compute(sent) if isinstance(sent, list) else sent
    except ValueError as error:
        raise _UnfitError(
            Cause.OUT_OF_BOUNDS, f"metrics: {name!r}: its sums give no value: {error}"
        ) from None
    for number in value if isinstance(value, list) else [value]:
        # A value that was computed in float32 may be a little outside.
        slack = TOLERANCE * abs(number)
        if number < metric.low - slack or number > metric.high + slack:
            raise _UnfitError(
                Cause.OUT_OF_BOUNDS,
                f"metrics: {name!r} is {number:g}, expected {metric.low:g} to {metric.high:g}",
            )


def _count(value: Value) -> int:
    """Return a count that `_metric` has checked."""
    return int(value) if not isinstance(value, list) else 0


def _arrays(record: ArrayRecord | None, before: Arrays) -> dict[str, NDArray[np.generic]]:
    received: ArrayRecord = record if record is not None else ArrayRecord()
    specs = specs_of(before)
    if missing := [name for name in specs if name not in received]:
        raise _UnfitError(
            Cause.MISFIT, f"array {missing[0]!r} is missing ({len(missing)} of {len(specs)} are)"
        )
    if extra := [name for name in received if name not in specs]:
        raise _UnfitError(Cause.MISFIT, f"array {extra[0]!r} is not in the global model")
    return {name: _array(name, received[name], specs[name], before[name]) for name in specs}


def _array(name: str, packed: Array, spec: ArraySpec, before: NDArray[Any]) -> NDArray[np.generic]:
    # Check the header before decoding, and the decoded array again: a header can be forged.
    claimed = ArraySpec(tuple(packed.shape), packed.dtype)
    if claimed != spec:
        raise _UnfitError(Cause.MISFIT, f"array {name!r}: got {claimed}, expected {spec}")
    try:
        array = view_of(packed)
    except Exception as error:  # untrusted bytes can make the decoder raise anything
        raise _UnfitError(Cause.MISFIT, f"array {name!r} cannot be decoded: {error}") from None
    actual = ArraySpec(array.shape, str(array.dtype))
    if actual != spec:
        raise _UnfitError(Cause.MISFIT, f"array {name!r}: got {actual}, expected {spec}")
    _check_finite(name, array, before)
    return array


def _check_finite(name: str, array: NDArray[Any], before: NDArray[Any] | None) -> None:
    """Reject values that are not finite, except in an unchanged array without NaN."""
    if all_finite(array) or (before is not None and np.array_equal(array, before)):
        return
    count = int(array.size - np.isfinite(array).sum())
    raise _UnfitError(
        Cause.NOT_FINITE, f"array {name!r}: {count} of {array.size} values are not finite"
    )
