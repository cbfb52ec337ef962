"""Points of a run at which tests let things go wrong. Without the test hook nothing happens.

The hook is a function ``module:name``, named in the environment of a process by whoever tests
it. It is called with the point's name and what is known there, and may raise, wait, or end
the process. Nothing in a run or node config can turn it on.
"""

import importlib
import os
from collections.abc import Callable
from functools import lru_cache

HOOK_VARIABLE = "MDC_FLOWER_TEST_FAULT_HOOK"

Hook = Callable[..., None]


def reach(point: str, **where: str | int) -> None:
    """Say that a point is reached; ``where`` tells the round, the site, the file."""
    hook = _hook(os.environ.get(HOOK_VARIABLE, ""))
    if hook is not None:
        hook(point, **where)


@lru_cache(maxsize=1)
def _hook(reference: str) -> Hook | None:
    if not reference:
        return None
    module, _, name = reference.partition(":")
    hook: Hook = getattr(importlib.import_module(module), name)
    return hook
