"""Every random stream of a run, derived from the run's seed and what the stream is for."""

import hashlib
import json


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on ``seed`` and every label, in order.

    The digest of the labels is used, rather than arithmetic on them, so that streams of
    neighbouring seeds, rounds or sites share nothing.

    >>> derive_seed(1, "site-0", 3) == derive_seed(1, "site-0", 3)
    True
    >>> derive_seed(1, "site-0", 3) == derive_seed(1, "site-03")
    False
    """
    text = json.dumps([seed, *labels])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
