"""Put the content of a message into a file, and read it back, without importing PyTorch.

The arrays are in a safetensors file, as the bytes that Flower carries, so an encoded array stays as
it is. Read back, they are mapped into memory, so the system can drop what is not being used.
Everything else is JSON.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies.exchange.records import packed_array, records_of
from strategies.storage.model_files import StoredArrays, model_parts

WORD_BYTES = 8
"""What the beginning of the first array in a safetensors file is a multiple of."""

Header = Mapping[str, Any]
"""What `unpack` needs besides the file; can be written as JSON."""


def pack(content: RecordDict, path: Path) -> Header:
    """Write the arrays of a message's content to a new file; return the rest."""
    blobs: dict[str, np.ndarray[Any, Any]] = {}
    arrays: dict[str, list[dict[str, Any]]] = {}
    for record, packed in records_of(content, ArrayRecord).items():
        arrays[record] = []
        for name, array in packed.items():
            # The file is in the order of the keys. Whole words come first, so they are aligned.
            key = f"{len(array.data) % WORD_BYTES > 0:d}-{len(blobs)}"
            blobs[key] = np.frombuffer(array.data, np.uint8)
            about = {"dtype": array.dtype, "shape": list(array.shape), "stype": array.stype}
            arrays[record].append({"key": key, "name": name, **about})
    path.unlink(missing_ok=True)  # what is mapped stays as it is
    with path.open("wb") as file:
        file.writelines(model_parts(blobs, {}))
    configs, metrics = records_of(content, ConfigRecord), records_of(content, MetricRecord)
    return {
        "arrays": arrays,
        "configs": {name: dict(record) for name, record in configs.items()},
        "metrics": {name: dict(record) for name, record in metrics.items()},
    }


def unpack(header: Header, path: Path) -> RecordDict:
    """Return the content that `pack` wrote; its arrays are in the map of the file."""
    content, blobs = RecordDict(), StoredArrays(path)
    for record, entries in header["arrays"].items():
        content[record] = arrays = ArrayRecord()
        for entry in entries:
            arrays[entry["name"]] = packed_array(
                entry["dtype"],
                tuple(entry["shape"]),
                entry["stype"],
                blobs[entry["key"]].data.toreadonly(),
            )
    for record, values in header["configs"].items():
        content[record] = ConfigRecord(values)
    for record, values in header["metrics"].items():
        content[record] = MetricRecord(values)
    return content
