"""Points of a run at which tests can inject faults. Without a test hook they do nothing.

The hook is a function ``module:name`` that a test names in an environment variable of the process.
It is called with the name of the point and its context, and may raise, wait, or end the process.
No run config or node config can turn it on.
"""

import importlib
import os
from collections.abc import Callable
from functools import lru_cache

HOOK_VARIABLE = "MDC_FLOWER_TEST_FAULT_HOOK"

Hook = Callable[..., None]


def reach(point: str, **where: str | int) -> None:
    """Call the hook, if there is one; ``where`` gives context such as round, site or file."""
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
