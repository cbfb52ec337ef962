"""mdc-flower: one deep network trained together by several data centers, on Flower.

This package is the Flower app, what runs at the coordinator and at a site, and the command
that starts it. PyTorch lives here. It may import ``strategies``, never ``simulations``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what a script uses when it uses it, so that this package imports nothing.

    That is `mdc_flower.site`, and `predict` and `trained_model` of `mdc_flower.jobs.prediction`.
    """
    if name == "site":
        return import_module("mdc_flower.site")
    if name in ("predict", "trained_model"):
        return getattr(import_module("mdc_flower.jobs.prediction"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
