"""Model files: exact values, equal files for equal models, one array read at a time."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import strategies
from strategies.common.errors import RunError
from strategies.common.files import DamagedError, check_seal, seal, write_atomically
from strategies.storage.model_files import (
    METADATA_KEY,
    SealedArrays,
    StoredArrays,
    model_parts,
    read_model,
)

METADATA = {"model": "mlp", "classes": ["a", "b"], "nested": {"width": 3}}
REPOSITORY = Path(strategies.__file__).parents[1]
DTYPES = ["float16", "float32", "float64", "int64", "int32", "uint8", "bool"]


def model(value: float) -> dict[str, Any]:
    return {"w": np.full((2, 3), value, np.float32), "n": np.array(3)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    write_atomically(path, model_parts(model(1.0), METADATA))
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_file_keeps_every_bit_shape_and_dtype(tmp_path: Path, dtype: str) -> None:
    values = np.arange(6).reshape(2, 3)
    arrays = {
        "matrix": values.astype(dtype),
        "transposed": values.astype(dtype).T,
        "every other": values.astype(dtype)[:, ::2],
        "scalar": np.array(1, dtype),
        "one element": np.array([1], dtype),
        "empty": np.zeros((0, 3), dtype),
    }
    write_atomically(tmp_path / "model", model_parts(arrays, METADATA))
    read, metadata = read_model(tmp_path / "model")
    assert metadata == METADATA
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert isinstance(read[name], np.ndarray), name
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape), name
        assert read[name].tobytes() == array.tobytes(), name


def test_a_model_file_differs_when_one_bit_of_the_model_or_its_metadata_does() -> None:
    nudged = model(1.0)
    nudged["w"][0, 0] = np.nextafter(np.float32(1), np.float32(2))
    packed = packed_model(model(1.0), METADATA)
    assert packed_model(nudged, METADATA) != packed
    assert packed_model(model(1.0), {**METADATA, "model": "cnn"}) != packed


def packed_model(arrays: dict[str, Any], metadata: dict[str, Any]) -> bytes:
    return b"".join(model_parts(arrays, metadata))


PACK = """
import hashlib, numpy as np
from strategies.storage.model_files import model_parts
# Sets of strings are in an order that hangs on the process's hash seed, and so are dicts of them.
names = {f"layer{index}.weight" for index in range(20)}
metadata = {f"key-{index}" for index in range(20)}
content = model_parts(
    {name: np.full(3, len(name), np.float32) for name in names},
    {key: {inner: 1 for inner in metadata} for key in metadata},
)
print(list(names)[0], hashlib.sha256(b"".join(content)).hexdigest())
"""


def test_equal_models_are_equal_files_in_every_process() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PACK],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    (first_name, first_digest), (second_name, second_digest) = outputs
    assert first_name != second_name  # the processes do differ in what must not matter
    assert first_digest == second_digest
    assert len(first_digest) == hashlib.sha256().digest_size * 2


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_model_file_that_was_cut_is_damaged(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match="model file is damaged") as caught:
        read_model(path)
    assert caught.value.where == str(path)


def test_a_file_that_is_no_model_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"\xff" * 200)
    with pytest.raises(RunError, match="model file is damaged"):
        read_model(tmp_path / "model")


def test_no_model_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no model here") as caught:
        read_model(tmp_path / "absent")
    assert caught.value.where == str(tmp_path / "absent")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_model_of_another_project_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    content = safetensors.numpy.save({"w": np.ones(3)}, metadata=metadata)
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(RunError, match="does not say how to rebuild the model"):
        read_model(tmp_path / "model")


def test_metadata_that_cannot_be_read_is_damage_too(tmp_path: Path) -> None:
    content = safetensors.numpy.save({"w": np.ones(3)}, metadata={"mdc-flower": "{cut"})
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        read_model(tmp_path / "model")


def test_stored_arrays_are_a_mapping_of_the_arrays_in_the_file(path: Path) -> None:
    stored = StoredArrays(path)
    assert (len(stored), set(stored), stored.metadata) == (2, {"w", "n"}, METADATA)
    assert (stored["n"].shape, stored["n"].tolist()) == ((), 3)
    assert stored["w"].tolist() == [[1.0] * 3] * 2
    assert "w" in stored
    assert "absent" not in stored
    with pytest.raises(KeyError, match="absent"):
        stored["absent"]


def test_the_order_of_stored_arrays_is_the_same_every_time(tmp_path: Path) -> None:
    arrays = {name: np.zeros(size, "float32") for name, size in (("z", 3), ("a", 9), ("m", 1))}
    write_atomically(tmp_path / "one", model_parts(arrays, {}))
    write_atomically(tmp_path / "two", model_parts(dict(reversed(arrays.items())), {}))
    one, two = (list(StoredArrays(tmp_path / name)) for name in ("one", "two"))
    assert one == two == list(StoredArrays(tmp_path / "one"))
    assert list(read_model(tmp_path / "one")[0]) == one


def test_a_file_is_open_and_mapped_once_while_its_arrays_are_used(path: Path) -> None:
    stored = StoredArrays(path)
    assert list(stored)
    assert stored.metadata == METADATA
    assert uses(path) == (0, 0)
    array, other = stored["w"], stored["n"]
    assert uses(path) == (1, 1)
    part = array[:1]
    del array, other
    assert uses(path) == (1, 1)
    assert part.tolist() == [[1.0] * 3]
    del part
    assert uses(path) == (0, 0)


def uses(path: Path) -> tuple[int, int]:
    """Return how often this process has mapped a file, and how often it has opened it."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    opened = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
    return sum(line.endswith(str(path)) for line in maps), opened.count(str(path))


def test_a_sealed_file_that_was_written_since_is_compared_with_its_checksum(
    tmp_path: Path,
) -> None:
    path = seal(tmp_path, "model", ".safetensors", model_parts(model(1.0), METADATA))
    stored = SealedArrays(path, intact=True)
    content = path.read_bytes()
    write_later(path, content)
    assert stored["w"].tolist() == [[1.0] * 3] * 2
    write_later(path, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedError, match="does not match the checksum"):
        stored["w"]
    path.unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        stored["w"]


def write_later(path: Path, content: bytes) -> None:
    """Write a file so that its times differ, however coarse the file system's clock is."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


def test_a_model_file_has_the_bytes_that_the_library_writes(tmp_path: Path) -> None:
    arrays = {
        name: np.arange(size).astype(dtype)
        for size, name in enumerate(["b", "a", '\u00fc "\\\n\x01', "c.weight"], start=1)
        for dtype in DTYPES
        for name in [f"{name}.{dtype}"]
    }
    about = {METADATA_KEY: json.dumps(METADATA, sort_keys=True)}
    expected = safetensors.numpy.save(arrays, about)
    assert b"".join(model_parts(arrays, METADATA)) == expected
    path = seal(tmp_path, "model", ".safetensors", model_parts(arrays, METADATA))
    assert path.read_bytes() == expected
    check_seal(path)


def test_stored_arrays_can_be_written_again_in_any_order(path: Path) -> None:
    stored = StoredArrays(path, ["w", "n"])
    assert list(stored) == ["w", "n"]
    assert b"".join(model_parts(stored, METADATA)) == path.read_bytes()


def test_a_stored_array_may_be_changed_without_changing_the_file(path: Path) -> None:
    before = path.read_bytes()
    stored = StoredArrays(path)
    stored["w"][0, 0] = 77.0
    assert stored["w"][0, 0] == 1.0
    assert path.read_bytes() == before


def test_what_is_wrong_with_stored_arrays_is_found_on_first_use(tmp_path: Path) -> None:
    stored = StoredArrays(tmp_path / "absent")
    with pytest.raises(RunError, match="there is no model here"):
        stored["w"]
