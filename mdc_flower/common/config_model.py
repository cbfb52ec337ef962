"""Base class of every config: keys in kebab case, and errors that name the key."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from strategies.common.errors import ConfigError

Scalar = bool | int | float | str


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class ConfigModel(BaseModel):
    """A set of keys: fields of the subclass, spelled with hyphens in files."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=_kebab, validate_default=True
    )

    @classmethod
    def keys(cls) -> list[str]:
        """Return all keys, spelled as in a config file."""
        return [_kebab(name) for name in cls.model_fields]

    @classmethod
    def check_keys(cls, keys: Iterable[str], home: str) -> None:
        """Refuse unknown keys.

        Parameters
        ----------
        home
            Where the keys come from, for the error.

        Raises
        ------
        ConfigError
            Naming the first unknown key, and the most similar known one.
        """
        known = cls.keys()
        for key in keys:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ConfigError(
                    "no such key",
                    where=f"{home}, {key}",
                    expected="one of: " + ", ".join(known) if not near else "",
                    hint=f"Did you mean {near[0]!r}?" if near else "",
                )

    @classmethod
    def read(cls, values: Mapping[str, object], home: str) -> Self:
        """Validate a mapping from keys to values.

        Raises
        ------
        ConfigError
            Naming the first bad key, its value and what is allowed; for an unknown key, the
            most similar known one.
        """
        cls.check_keys(values, home)
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                first["msg"].removeprefix("Value error, "),
                where=f"{home}, {key}" if key else home,
                got=first["input"] if key else None,
            ) from None

    def to_flower(self) -> dict[str, Scalar]:
        """Return the complete config as a flat mapping for Flower, in the order of the fields."""
        return {_kebab(name): value for name, value in self.model_dump().items()}
