"""mdc-flower: one deep network trained together by several data centers, on Flower.

This package is the Flower app, what runs at the coordinator and at a site, and the command
that starts it. PyTorch lives here. It may import ``strategies``, never ``simulations``.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """Import `mdc_flower.site` when a script calls it, so that this package imports nothing."""
    if name == "site":
        return import_module("mdc_flower.site")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
