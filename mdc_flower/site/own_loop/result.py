"""The result of a round: reads what the command wrote, and trusts none of it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mdc_flower.site.own_loop.protocol import EVALUATE, RESULT, TRAIN, TRAINED
from mdc_flower.site.own_loop.request import Arrays
from strategies.common.errors import MdcError, ModelError
from strategies.exchange.gate import specs_of
from strategies.exchange.metrics import TRAIN as TRAIN_PREFIX
from strategies.exchange.metrics import VALIDATION, Value, may_be_metric

FIELDS = {
    TRAIN: frozenset({"num_examples", "num_steps", "metrics"}),
    EVALUATE: frozenset({"num_examples", "metrics"}),
}
"""The fields of a result, by kind of round."""

PREFIX = {TRAIN: TRAIN_PREFIX, EVALUATE: VALIDATION}
"""What a metric's name begins with where it leaves the site, by kind of round."""


@dataclass(frozen=True)
class Result:
    """The content of ``result.json``.

    Attributes
    ----------
    num_examples : int
        Examples that the metrics are over; in training, the weight of the update.
    metrics : dict
        Finite numbers, or lists of them, under the names that leave the site; among them
        ``num-steps``, if it is in the result of a training.
    """

    num_examples: int
    metrics: dict[str, Value]


def read_result(folder: Path, kind: str, site: str) -> Result:
    """Return the result that the command wrote.

    Raises
    ------
    MdcError
        If the file is not such a result. The message names the field, but no text from the file.
    """
    try:
        fields = json.loads((folder / RESULT).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(site, "cannot be read", type(error).__name__, "JSON") from None
    if not isinstance(fields, dict):
        raise _unusable(site, "has the wrong type", type(fields).__name__, "an object")
    if unknown := len(fields.keys() - FIELDS[kind]):
        expected = ", ".join(sorted(FIELDS[kind]))
        raise _unusable(site, "has unknown fields", f"{unknown} of them", f"only {expected}")
    named = _metrics(site, kind, fields.get("metrics", {}))
    if "num_steps" in fields:
        named["num-steps"] = _count(site, "num_steps", fields["num_steps"])
    return Result(_count(site, "num_examples", fields.get("num_examples")), named)


def _metrics(site: str, kind: str, metrics: Any) -> dict[str, Value]:
    """Return the metrics under the names that leave the site."""
    if not isinstance(metrics, dict):
        raise _unusable(site, "has the wrong type", type(metrics).__name__, "an object", "metrics")
    named: dict[str, Value] = {}
    for name, value in metrics.items():
        if not may_be_metric(PREFIX[kind] + name):
            expected = "names of lower-case letters, digits and hyphens"
            raise _unusable(site, "has a metric that cannot be sent", None, expected, "metrics")
        numbers = [_number(site, v) for v in (value if isinstance(value, list) else [value])]
        if all(map(math.isfinite, numbers)):
            named[PREFIX[kind] + name] = numbers if isinstance(value, list) else numbers[0]
        elif kind == TRAIN:  # a bad global model is no reason to reject the site's update
            raise _unusable(site, "has an unusable value", None, "finite numbers", "metrics")
    return named


def read_trained(folder: Path, site: str, before: Arrays) -> dict[str, NDArray[np.generic]]:
    """Return the trained model that the command wrote, in the order of ``before``.

    Raises
    ------
    MdcError
        If the file is missing, is damaged, or has values that are not finite.
    ModelError
        If it does not have the arrays of ``before``; names the first mismatch.
    """
    where = f"site {site!r}, {TRAINED}"
    try:
        with safe_open(folder / TRAINED, framework="np") as file:
            after: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise MdcError("the command wrote no trained model", where=where) from None
    except (OSError, SafetensorError, TypeError, ValueError, AttributeError) as error:
        # A number format that numpy does not know is one of the last three.
        raise MdcError(
            "the trained model cannot be read",
            where=where,
            got=type(error).__name__,
            expected="a safetensors file with the model's number formats",
        ) from None
    if odd := sorted(before.keys() ^ after.keys()):
        side = "is missing" if odd[0] in before else "is not in the model"
        raise ModelError(f"array {odd[0]!r} {side}", where=where, got=f"{len(after)} arrays")
    got, expected = specs_of(after), specs_of(before)
    for name in before:
        if got[name] != expected[name]:
            raise ModelError(
                "the array does not match the model",
                where=f"{where}, array {name!r}",
                got=str(got[name]),
                expected=str(expected[name]),
            )
        _check_finite(where, name, after[name], before[name])
    return {name: after[name] for name in before}


def _check_finite(where: str, name: str, array: NDArray[Any], before: NDArray[Any]) -> None:
    if not np.issubdtype(array.dtype, np.inexact) or np.array_equal(array, before):
        return
    if count := int(array.size - np.isfinite(array).sum()):
        raise MdcError(
            "the trained model has values that are not finite",
            where=f"{where}, array {name!r}",
            got=f"{count} of {array.size}",
            expected="only finite values",
        )


def _count(site: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        got = value if isinstance(value, int) else type(value).__name__
        raise _unusable(site, "has an unusable value", got, "a whole number, 0 or more", name)
    return value


def _number(site: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unusable(site, "has an unusable value", type(value).__name__, "numbers", "metrics")
    return float(value)


def _unusable(site: str, what: str, got: object, expected: str, field: str = "") -> MdcError:
    where = f"site {site!r}, {RESULT}" + (f", {field}" if field else "")
    return MdcError(f"the result {what}", where=where, got=got, expected=expected)
