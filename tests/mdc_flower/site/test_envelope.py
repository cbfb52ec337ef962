"""A message in a file: read back, it is the same, and takes no memory of its own."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from mdc_flower.site.envelope import pack, unpack
from strategies.exchange.messages import arrays_to_record
from strategies.exchange.records import record_views, records_of

LARGE = 2**24
"""Values of an array of 64 MiB."""


def message(value: float, size: int = 3) -> RecordDict:
    """Return a message with records of all kinds, and with arrays of odd lengths."""
    arrays = {"mask": np.ones(3, bool), "w": np.full(size, value), "none": np.ones((0, 2))}
    return RecordDict(
        {
            "arrays": arrays_to_record(arrays),
            "others": ArrayRecord({"encoded": Array("uint8", (2,), "own", b"ab")}),
            "orders": ConfigRecord({"a": 1}),
            "metrics": MetricRecord({"b": [2.0, 3.0]}),
        }
    )


def test_a_message_is_the_same_when_it_is_read_back(tmp_path: Path) -> None:
    content = message(1.0)
    assert unpack(pack(content, tmp_path / "file"), tmp_path / "file") == content


def test_a_message_that_was_read_stays_as_it_is_when_the_next_one_is_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    first = unpack(pack(message(1.0), path), path)
    second = unpack(pack(message(2.0), path), path)
    assert (first, second) == (message(1.0), message(2.0))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_arrays_that_are_read_back_are_in_the_file(tmp_path: Path) -> None:
    header = pack(message(1.0, LARGE), tmp_path / "file")
    before = memory()
    content = unpack(header, tmp_path / "file")
    views = record_views(records_of(content, ArrayRecord)["arrays"])
    assert views["w"].sum() == LARGE
    assert memory() - before < views["w"].nbytes / 4


def memory() -> int:
    """Return the bytes of this process that are not pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
