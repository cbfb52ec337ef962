"""A real or simulated site: how it answers a message.

The package itself can be called: ``mdc_flower.site()``, in a script that a site runs as its
command, returns the `mdc_flower.site.own_loop.site.Site`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdc_flower.site.own_loop.site import Evaluate, Site


class _Callable(ModuleType):
    """The package `mdc_flower.site`, with a call."""

    def __call__(self, evaluate: "Evaluate | None" = None) -> "Site":
        """Return the site that runs this script; see `mdc_flower.site.own_loop.site.Site`."""
        from mdc_flower.site.own_loop.site import Site

        return Site(evaluate)


sys.modules[__name__].__class__ = _Callable
