"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """Return the cores that this process may run on; all of them where none can be reserved."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
