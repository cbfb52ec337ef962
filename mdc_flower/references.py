"""Resolve the ``module:function`` names by which users plug in data and models of their own."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strategies.errors import ConfigError


def load_reference(reference: str, key: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names.

    Parameters
    ----------
    reference
        Such as ``my_lab.scans:load``; the module must be importable where this runs.
    key
        Config key that holds the reference, for the error.

    Raises
    ------
    ConfigError
        If the module cannot be imported or is no Python, or has no such function.
    """
    module_name, _, function_name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: no module's name
        raise ConfigError(
            f"module {module_name!r} cannot be imported: {error}",
            where=key,
            got=reference,
            hint="Install it, or add its folder to PYTHONPATH, at the coordinator and every site",
        ) from error
    except SyntaxError as error:  # its text names file and line
        raise ConfigError(
            f"module {module_name!r} is not Python: {error}", where=key, got=reference
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"module {module_name!r} has no function {function_name!r}", where=key, got=reference
        )
    return function  # type: ignore[no-any-return]


@contextmanager
def relative_paths_explained(reference: str, key: str) -> Iterator[None]:
    """Say where a user's function runs, if a file that it names by a relative path is not there.

    In one process it runs where ``mdc`` was started; the processes of a simulation on Ray, and of a
    SuperLink or SuperNode, have other working directories.

    Parameters
    ----------
    reference, key
        As for `load_reference`.

    Raises
    ------
    ConfigError
        In place of a `FileNotFoundError` about a relative path.
    """
    try:
        yield
    except FileNotFoundError as error:
        # Some libraries name the file in their message only.
        name = str(error.filename or error)
        if Path(name).is_absolute():
            raise
        raise ConfigError(
            f"{reference!r} opens a file by a relative path, and it is not there",
            where=key,
            got=name,
            hint=f"This process works in {Path.cwd()}, not in the folder where mdc was started: "
            "use an absolute path, or one relative to __file__",
        ) from error
