"""Records of a message: looked at without copies, and freed as soon as nobody uses them."""

import gc
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from weakref import ref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies.exchange.messages import arrays_to_record
from strategies.exchange.records import packed_array, record_views, records_of, view_of


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def message() -> RecordDict:
    return RecordDict(
        {
            "arrays": arrays_to_record({"w": np.ones(3)}),
            "orders": ConfigRecord({"a": 1}),
            "metrics": MetricRecord({"b": 2}),
        }
    )


def test_the_records_of_a_kind_are_those_that_flower_names() -> None:
    content = message()
    assert records_of(content, ArrayRecord) == dict(content.array_records)
    assert records_of(content, ConfigRecord) == dict(content.config_records)
    assert records_of(content, MetricRecord) == dict(content.metric_records)


@pytest.mark.usefixtures("no_garbage_collector")
def test_a_message_that_was_looked_at_is_freed_at_once() -> None:
    ours, flowers = message(), message()
    records_of(ours, ArrayRecord)
    _ = flowers.array_records  # once this is freed at once too, `records_of` is not needed
    left = ref(ours), ref(flowers)
    del ours, flowers
    assert [content() is None for content in left] == [True, False]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_view_is_the_array(dtype: str, shape: tuple[int, ...], order: Any) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype, order=order)
    view = view_of(Array(array))
    assert (view.dtype, view.shape) == (array.dtype, array.shape)
    assert np.array_equal(view, array)
    assert view.flags.c_contiguous


def test_a_view_shares_the_bytes_of_the_message() -> None:
    record = arrays_to_record({"w": np.ones(3)})
    (view,) = record_views(record).values()
    assert np.shares_memory(view, np.frombuffer(record["w"].data, np.uint8))
    assert not view.flags.writeable


@pytest.mark.parametrize("offset", [0, 1, 8])
def test_the_bytes_of_an_array_may_stay_in_any_memory(offset: int) -> None:
    whole = Array(np.arange(3.0))
    memory = np.frombuffer(b"-" * offset + whole.data, np.uint8)[offset:]
    packed = packed_array(whole.dtype, tuple(whole.shape), whole.stype, memory.data)
    view = view_of(packed)
    assert view.tolist() == [0.0, 1.0, 2.0]
    assert view.flags.aligned
    assert np.shares_memory(view, memory) == (offset % 8 == 0)
    assert packed.object_id == whole.object_id  # Flower sends the same
    assert packed.numpy().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("stype", "array"),
    [
        ("pickle", np.ones(3)),
        ("numpy.ndarray", np.array([{}])),
        ("numpy.ndarray", None),
    ],
)
def test_bytes_that_are_no_array_of_numbers_are_refused(stype: str, array: Any) -> None:
    file = BytesIO(b"junk")
    if array is not None:
        np.save(file, array)
    with pytest.raises(ValueError, match=r"array|magic"):
        view_of(Array("float64", (3,), stype, file.getvalue()))


def test_bytes_that_were_cut_are_refused() -> None:
    whole = Array(np.ones(3))
    with pytest.raises(ValueError, match="buffer"):
        view_of(Array(whole.dtype, tuple(whole.shape), whole.stype, whole.data[:-1]))
