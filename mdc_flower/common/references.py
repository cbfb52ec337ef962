"""Resolve ``module:function`` names, with which users plug in their own data and models."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strategies.common.errors import ConfigError

USERS_FOLDER = "MDC_USER_FOLDER"
"""Environment variable with the folder of the user's own modules: where `mdc` was started."""


def users_folder() -> str:
    """Return the folder of the user's own modules."""
    return os.environ.get(USERS_FOLDER) or str(Path.cwd())


def add_users_folder(folder: str) -> None:
    """Let this process, and the processes that it starts, import the user's own modules.

    Their folder comes last on the path: a user's file ``datasets.py`` or ``types.py`` must not
    replace a library's module, neither here nor in a process of Flower or Ray.
    """
    os.environ[USERS_FOLDER] = folder
    if folder not in sys.path:
        sys.path.append(folder)


def load_reference(reference: str, key: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names.

    Parameters
    ----------
    reference
        Such as ``my_lab.scans:load``; this process must be able to import the module.
    key
        Config key that contains the reference, for the error.

    Raises
    ------
    ConfigError
        If the module cannot be imported, is not Python, or has no such function.
    """
    module_name, _, function_name = reference.partition(":")
    if folder := os.environ.get(USERS_FOLDER):  # set by the `mdc` that started this process
        add_users_folder(folder)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: not a module name
        raise ConfigError(
            f"module {module_name!r} cannot be imported: {error}",
            where=key,
            got=reference,
            hint="Install it, or add its folder to PYTHONPATH, at the coordinator and every site",
        ) from error
    except SyntaxError as error:  # its message names file and line
        raise ConfigError(
            f"module {module_name!r} is not Python: {error}", where=key, got=reference
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"module {module_name!r} has no function {function_name!r}",
            where=key,
            got=reference,
            hint=f"It was imported from {getattr(module, '__file__', None) or 'Python itself'}",
        )
    return function  # type: ignore[no-any-return]


@contextmanager
def relative_paths_explained(reference: str, key: str) -> Iterator[None]:
    """Explain a missing file that a user's function opens by a relative path.

    In a single process, the function runs in the folder where ``mdc`` was started. The processes
    of a simulation on Ray, a SuperLink or a SuperNode have other working directories.

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
        # Some libraries name the file only in the message.
        name = str(error.filename or error)
        if Path(name).is_absolute():
            raise
        raise ConfigError(
            f"{reference!r} opens a file by a relative path, but the file does not exist",
            where=key,
            got=name,
            hint=f"This process runs in {Path.cwd()}, not in the folder where mdc was started. "
            "Use an absolute path, or one relative to __file__",
        ) from error
