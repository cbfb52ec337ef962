"""Parse configuration: TOML files, arm files, and ``key=value`` on the command line."""

import tomllib
from pathlib import Path
from typing import Any

from strategies.common.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    TOML is UTF-8 by definition. A byte-order mark, which some Windows editors write, is skipped.

    Raises
    ------
    ConfigError
        If the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:  # not text, or not TOML
        raise ConfigError(f"the file is not TOML: {error}", where=str(path)) from None


def read_arm(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an arm file's run config and its ``[arm]`` table; see `read_toml` for errors."""
    values = read_toml(path)
    arm = values.pop("arm", {})
    return values, arm


def parse_setting(text: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``; a value that is not TOML is a plain string."""
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError("not of the form key=value", where="--set", got=text)
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value
