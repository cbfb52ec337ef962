"""Digests of examples and batches, whatever they consist of."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdc_flower.common.array_digests import add_array


def add_to_digest(digest: Any, part: Any) -> None:
    """Add an example or a batch to a digest of `hashlib`: tensors, arrays, texts and numbers.

    Tensors and arrays count with their dtype, shape and values. Mappings, tuples and lists may hold
    any of these.
    """
    if isinstance(part, Tensor):
        digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
        values = part.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    elif hasattr(part, "__array__"):  # of numpy, or an image
        add_array(digest, np.asarray(part))
    elif isinstance(part, Mapping):
        for key, value in part.items():
            digest.update(str(key).encode())
            add_to_digest(digest, value)
    elif isinstance(part, list | tuple):
        for value in part:
            add_to_digest(digest, value)
    else:
        digest.update(repr(part).encode())
