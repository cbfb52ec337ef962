"""Derives the seed of every random stream from the run's seed and the purpose of the stream."""

import hashlib
import json


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on ``seed`` and every label, in order.

    The seed is a digest of the labels, not arithmetic on them, so that the streams of neighboring
    seeds, rounds or sites are independent.

    >>> derive_seed(1, "site-0", 3) == derive_seed(1, "site-0", 3)
    True
    >>> derive_seed(1, "site-0", 3) == derive_seed(1, "site-03")
    False
    """
    text = json.dumps([seed, *labels])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
