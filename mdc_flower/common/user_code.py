"""Turn exceptions of a user's own code into errors that say what failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from strategies.common.errors import MdcError


@contextmanager
def user_code(kind: type[MdcError], what: str, **about: Any) -> Iterator[None]:
    """Raise an error of a kind for any exception in the block but an `MdcError`.

    Parameters
    ----------
    kind
        Type of the error.
    what
        What failed. The type of the exception is added; its text, which may contain a value of the
        data, is `MdcError.said`.
    about
        ``where``, ``got`` and ``hint`` of the error.
    """
    try:
        yield
    except MdcError:
        raise
    except Exception as error:  # user code may raise any exception
        raise kind(f"{what}: {type(error).__name__}", said=str(error), **about) from error
