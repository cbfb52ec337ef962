"""The `mdc` command: the app with the commands of this package and of all plug-ins.

A plug-in names a module in the entry-point group ``mdc_flower.commands``; importing that module
adds its commands to `app`. `simulations` adds ``compare`` and ``report`` this way, so this package
does not import it.
"""

from importlib.metadata import entry_points

import mdc_flower.cli.data
import mdc_flower.cli.federation
import mdc_flower.cli.run  # noqa: F401  # adds its commands to the app
from mdc_flower.cli.shared import app

__all__ = ["app"]

for _plugin in sorted(entry_points(group="mdc_flower.commands")):
    _plugin.load()
