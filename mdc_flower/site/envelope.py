"""Put the content of a message into a file, and read it back, without importing PyTorch.

The arrays are in a safetensors file, as the bytes that Flower carries, so an encoded array stays as
it is. Everything else is JSON.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import safe_open

from strategies.exchange.records import records_of
from strategies.storage.model_files import model_parts

Header = Mapping[str, Any]
"""What `unpack` needs besides the file; can be written as JSON."""


def pack(content: RecordDict, path: Path) -> Header:
    """Write the arrays of a message's content to a file; return the rest."""
    blobs: dict[str, np.ndarray[Any, Any]] = {}
    arrays: dict[str, list[dict[str, Any]]] = {}
    for record, packed in records_of(content, ArrayRecord).items():
        arrays[record] = []
        for name, array in packed.items():
            key = str(len(blobs))
            blobs[key] = np.frombuffer(array.data, np.uint8)
            about = {"dtype": array.dtype, "shape": list(array.shape), "stype": array.stype}
            arrays[record].append({"key": key, "name": name, **about})
    with path.open("wb") as file:
        file.writelines(model_parts(blobs, {}))
    configs, metrics = records_of(content, ConfigRecord), records_of(content, MetricRecord)
    return {
        "arrays": arrays,
        "configs": {name: dict(record) for name, record in configs.items()},
        "metrics": {name: dict(record) for name, record in metrics.items()},
    }


def unpack(header: Header, path: Path) -> RecordDict:
    """Return the content that `pack` wrote."""
    content = RecordDict()
    with safe_open(path, framework="np") as file:
        for record, entries in header["arrays"].items():
            content[record] = ArrayRecord(
                {
                    entry["name"]: Array(
                        entry["dtype"],
                        tuple(entry["shape"]),
                        entry["stype"],
                        file.get_tensor(entry["key"]).tobytes(),
                    )
                    for entry in entries
                }
            )
    for record, values in header["configs"].items():
        content[record] = ConfigRecord(values)
    for record, values in header["metrics"].items():
        content[record] = MetricRecord(values)
    return content
