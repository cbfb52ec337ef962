"""A model as a record that exists only while it is used."""

from collections.abc import Callable, Mapping
from threading import Lock
from weakref import ref

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from strategies.exchange.messages import arrays_to_record


class SharedModel:
    """A model as a record, which exists only while a message or an evaluation uses it.

    All that use it at the same time share one record, so it is serialized only once.

    Parameters
    ----------
    arrays : Mapping
        The model's arrays by name.
    """

    def __init__(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self.arrays = arrays
        self._lock = Lock()
        self._known: Callable[[], ArrayRecord | None] = lambda: None

    def record(self) -> ArrayRecord:
        """Return the record; from any thread."""
        with self._lock:
            record = self._known()
            if record is None:
                record = arrays_to_record(self.arrays)
                self._known = ref(record)
            return record
