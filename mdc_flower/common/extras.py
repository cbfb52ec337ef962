"""Optional libraries: an error names the extra that installs one.

A site needs neither Ray nor Matplotlib: what only some users need comes with an extra of
``pyproject.toml``.
"""

import importlib
from importlib.util import find_spec
from types import ModuleType

from strategies.common.errors import ConfigError

DRAWING = ("matplotlib", "scipy")
"""What pictures and pages need, of the extra ``simulation``."""


def library(name: str, extra: str, where: str) -> ModuleType:
    """Import and return an optional library.

    Raises
    ------
    ConfigError
        If it is not installed, needs a system library that is missing, or does not fit another
        library; it names the extra.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise _not_installed(str(error), extra, where) from None


def require(names: tuple[str, ...], extra: str, where: str) -> None:
    """Check that optional libraries are installed, without the seconds it takes to import them.

    Raises
    ------
    ConfigError
        If one is not installed; it names the extra.
    """
    for name in names:
        if find_spec(name) is None:
            raise _not_installed(f"No module named {name!r}", extra, where)


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'mdc-flower[{extra}]'"


def _not_installed(reason: str, extra: str, where: str) -> ConfigError:
    return ConfigError(
        f"an optional library is not installed, or cannot be used: {reason}",
        where=where,
        hint=f"Install it with: {install_command(extra)}",
    )
