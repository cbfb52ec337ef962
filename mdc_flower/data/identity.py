"""What tells data sets apart: their form, which sites must agree on, and their contents."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mdc_flower.common.array_digests import add_array
from mdc_flower.data.dataset import DataSet

DIGITS = 8
"""Hex digits of a digest of a part of the form: enough against a mistake, and short."""


def form_of(dataset: DataSet) -> str:
    """Return short digests of what sites and coordinator must agree on about their data.

    Examples are not part of it. A vocabulary is, if it is known.
    """
    inputs = dataset.train.inputs
    parts: dict[str, Any] = {
        "type": str(inputs.dtype),
        "shape": list(inputs.shape[1:]),
        "classes": list(dataset.class_names),
        "statistics": [[float(number) for number in of] for of in (dataset.mean, dataset.std)],
    }
    if dataset.vocabulary:
        parts["vocabulary"] = [dataset.num_tokens, dataset.vocabulary]
    return " ".join(f"{name}:{_short(value)}" for name, value in parts.items())


def differences(one: str, other: str) -> list[str]:
    """Return the parts in which two forms differ; a part that either lacks does not count."""
    ones, others = _parts(one), _parts(other)
    return [name for name, digest in ones.items() if others.get(name, digest) != digest]


def content_sha256(dataset: DataSet) -> str:
    """Return a digest of all examples, labels and groups, and of the form."""
    digest = hashlib.sha256(form_of(dataset).encode())
    for examples in dataset.splits.values():
        for array in (examples.inputs, examples.labels, examples.groups):
            if array is not None:
                add_array(digest, array)
    return digest.hexdigest()


def _parts(form: str) -> Mapping[str, str]:
    return dict(part.split(":", 1) for part in form.split() if ":" in part)


def _short(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]
